//! From the bytes of a picture to the bytes of a thumbnail.
//! In: a file's content, a plan. Out: the encoded thumbnail, or why it cannot be made. No files.

use std::io::Cursor;

use anyhow::anyhow;
use forebay_worker::{JobError, JobResult};
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::{CompressionType, FilterType as PngFilter, PngEncoder};
use image::codecs::webp::WebPEncoder;
use image::imageops::FilterType;
use image::metadata::Orientation;
use image::{
    DynamicImage, ImageDecoder, ImageEncoder, ImageError, ImageFormat, ImageReader, Limits, Rgb,
    RgbImage, RgbaImage,
};

use super::PictureFormat;
use super::fit::{Plan, Size};

/// The largest colour profile that is passed on.
const PROFILE: usize = 512 * 1024;

/// A picture whose header was read, and nothing else yet.
pub(super) struct Picture<'b> {
    /// As it is shown, its orientation applied.
    pub(super) size: Size,
    decoder: Box<dyn ImageDecoder + 'b>,
    format: PictureFormat,
    max_pixels: u64,
    orientation: Orientation,
    profile: Option<Vec<u8>>,
}

/// How a thumbnail is written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Finish {
    pub(super) format: PictureFormat,
    /// Of a JPEG, 1 to 100.
    pub(super) quality: u8,
    /// What shows through in a format without transparency.
    pub(super) background: [u8; 3],
}

impl<'b> Picture<'b> {
    /// Reads the header of a picture of one of these formats, and refuses one that would become
    /// larger in memory than it may.
    pub(super) fn read(
        bytes: &'b [u8],
        formats: &[PictureFormat],
        max_pixels: u64,
    ) -> JobResult<Self> {
        let format = format_of(bytes, formats)?;
        if format == PictureFormat::Jpeg && !is_whole_jpeg(bytes) {
            return Err(JobError::reject(anyhow!("the file ends before the picture does")));
        }
        let mut reader = ImageReader::with_format(Cursor::new(bytes), format.of_library());
        let mut limits = Limits::default();
        // 16 bits each of red, green, blue and alpha are the most that a pixel takes; and some
        // room for the decoder's own tables.
        limits.max_alloc = Some(max_pixels.saturating_mul(8).saturating_add(64 << 20));
        reader.limits(limits);
        let mut decoder = reader.into_decoder().map_err(|error| broken(&error))?;
        let (width, height) = decoder.dimensions();
        if area((width, height)) > max_pixels {
            return Err(JobError::reject(anyhow!(
                "it has {width} × {height} pixels, more than the {max_pixels} of `max_pixels`"
            )));
        }
        if width == 0 || height == 0 {
            return Err(JobError::reject(anyhow!("it has no pixels ({width} × {height})")));
        }
        // A picture is not worth less for an orientation or a profile that cannot be read.
        let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
        let profile = decoder.icc_profile().ok().flatten().filter(|icc| icc.len() <= PROFILE);
        let size = turned((width, height), orientation);
        Ok(Self { size, decoder: Box::new(decoder), format, max_pixels, orientation, profile })
    }

    /// About how many bytes it takes at once to make a thumbnail of it, besides the file.
    pub(super) fn memory(&self, plan: Plan) -> u64 {
        let pixel = u64::from(self.decoder.color_type().bytes_per_pixel());
        let (part, size) =
            (turned(plan.part, self.orientation), turned(plan.size, self.orientation));
        // A progressive JPEG is decoded from coefficients of 16 bits, all of which are there at
        // once. Of the others there are two: the decoder's and ours, or the picture and a part.
        let times = if self.format == PictureFormat::Jpeg { 3 } else { 2 };
        let decoding = area(self.size) * pixel * times;
        let rows = if is_sharp(part, size, self.max_pixels) { rows(part, size) } else { 0 };
        decoding.max(area(part) * pixel + rows + area(size) * pixel * 2)
    }

    /// Decodes the first frame, cuts, scales and turns it, and encodes the result. Between the
    /// steps it asks whether to stop.
    pub(super) fn thumbnail(
        self,
        plan: Plan,
        finish: Finish,
        stop: impl Fn() -> bool,
    ) -> JobResult<Vec<u8>> {
        let go_on = || if stop() { Err(JobError::retry(anyhow!("stopped"))) } else { Ok(()) };
        go_on()?;
        let mut picture =
            DynamicImage::from_decoder(self.decoder).map_err(|error| broken(&error))?;
        go_on()?;
        // Scaled before it is turned: that is fewer pixels to turn.
        let part = turned(plan.part, self.orientation);
        if part != (picture.width(), picture.height()) {
            let (x, y) = ((picture.width() - part.0) / 2, (picture.height() - part.1) / 2);
            picture = picture.crop_imm(x, y, part.0, part.1);
        }
        picture = scaled(picture, turned(plan.size, self.orientation), self.max_pixels);
        picture.apply_orientation(self.orientation);
        go_on()?;
        encoded(picture, self.profile, finish)
    }
}

/// The size as it is after turning, and back.
fn turned((width, height): Size, orientation: Orientation) -> Size {
    match orientation {
        Orientation::Rotate90
        | Orientation::Rotate270
        | Orientation::Rotate90FlipH
        | Orientation::Rotate270FlipH => (height, width),
        _ => (width, height),
    }
}

fn format_of(bytes: &[u8], formats: &[PictureFormat]) -> JobResult<PictureFormat> {
    let allowed = || formats.iter().map(|format| format.name()).collect::<Vec<_>>().join(", ");
    let guessed = image::guess_format(bytes).ok();
    let known = PictureFormat::ALL.into_iter().find(|format| guessed == Some(format.of_library()));
    match known {
        Some(format) if formats.contains(&format) => Ok(format),
        Some(format) => Err(JobError::reject(anyhow!(
            "it is a {} picture, and `formats` allows {} only",
            format.name(),
            allowed()
        ))),
        None => Err(JobError::reject(anyhow!(
            "it begins as no picture does that can be read ({})",
            allowed()
        ))),
    }
}

/// Whether the end of the picture is there. The decoder would fill up with grey what is missing.
fn is_whole_jpeg(bytes: &[u8]) -> bool {
    // Segments up to the first scan tell their length; a thumbnail inside one has an end as well.
    let mut at = 2;
    while let Some(&[0xFF, marker]) = bytes.get(at..at + 2) {
        match marker {
            0xFF => at += 1, // a fill byte
            0x01 | 0xD0..=0xD7 => at += 2,
            _ => {
                let Some(&[high, low]) = bytes.get(at + 2..at + 4) else { return false };
                at += 2 + usize::from(u16::from_be_bytes([high, low]));
                if marker == 0xDA {
                    // In a scan FF is always followed by a marker, and the end is one.
                    let scan = bytes.get(at..).unwrap_or_default();
                    return scan.windows(2).any(|pair| pair == [0xFF, 0xD9]);
                }
            }
        }
    }
    // Something else is wrong with it: the decoder knows better what.
    at < bytes.len()
}

/// Eight bits a channel, of the size wanted. Large pictures are first brought near it by averages,
/// which is many times faster, then to it by a filter that keeps them sharp.
fn scaled(picture: DynamicImage, size: Size, max_pixels: u64) -> DynamicImage {
    let (width, height) = size;
    let transparent = picture.color().has_alpha();
    let mut picture = match transparent {
        // Weighted by alpha, or the colour of what cannot be seen would bleed into what can.
        true => DynamicImage::ImageRgba8(weighted(picture.into_rgba8())),
        false => picture,
    };
    let part = (picture.width(), picture.height());
    if part != size && is_sharp(part, size, max_pixels) {
        if is_much_larger(part, size) {
            picture = picture.thumbnail_exact(width * 2, height * 2);
        }
        picture = picture.resize_exact(width, height, FilterType::Lanczos3);
    } else if part != size {
        picture = picture.thumbnail_exact(width, height);
    }
    match picture {
        DynamicImage::ImageRgba8(pixels) => DynamicImage::ImageRgba8(unweighted(pixels)),
        grey if !grey.color().has_color() => DynamicImage::ImageLuma8(grey.into_luma8()),
        coloured => DynamicImage::ImageRgb8(coloured.into_rgb8()),
    }
}

fn is_much_larger(part: Size, size: Size) -> bool {
    part.0 / 4 > size.0 && part.1 / 4 > size.1
}

/// Whether there is memory for the sharp filter; without it a thumbnail nearly as large as its
/// picture would take more than all the rest.
fn is_sharp(part: Size, size: Size, max_pixels: u64) -> bool {
    rows(part, size) <= max_pixels.saturating_mul(8)
}

/// What the sharp filter takes between its two passes: 16 bytes for each pixel of a picture that
/// has its height already and not yet its width.
fn rows(part: Size, size: Size) -> u64 {
    let width = if is_much_larger(part, size) { size.0 * 2 } else { part.0 };
    area((width, size.1)) * 16
}

fn area((width, height): Size) -> u64 {
    u64::from(width) * u64::from(height)
}

fn weighted(mut pixels: RgbaImage) -> RgbaImage {
    for pixel in pixels.pixels_mut() {
        let [r, g, b, a] = pixel.0;
        let by_alpha = |channel: u8| part_of(channel, a);
        pixel.0 = [by_alpha(r), by_alpha(g), by_alpha(b), a];
    }
    pixels
}

fn unweighted(mut pixels: RgbaImage) -> RgbaImage {
    for pixel in pixels.pixels_mut() {
        let [r, g, b, a] = pixel.0;
        let whole = |channel: u8| match a {
            0 => 0,
            a => u8::try_from((u16::from(channel) * 255 + u16::from(a) / 2) / u16::from(a))
                .unwrap_or(u8::MAX),
        };
        pixel.0 = [whole(r), whole(g), whole(b), a];
    }
    pixels
}

/// `value × share / 255`, rounded.
fn part_of(value: u8, share: u8) -> u8 {
    let product = u16::from(value) * u16::from(share);
    u8::try_from((product + 127) / 255).unwrap_or(u8::MAX)
}

fn on_background(pixels: &RgbaImage, background: [u8; 3]) -> RgbImage {
    RgbImage::from_fn(pixels.width(), pixels.height(), |x, y| {
        let [r, g, b, a] = pixels.get_pixel(x, y).0;
        let [back_r, back_g, back_b] = background;
        let over = |front, back| part_of(front, a).saturating_add(part_of(back, 255 - a));
        Rgb([over(r, back_r), over(g, back_g), over(b, back_b)])
    })
}

fn encoded(picture: DynamicImage, profile: Option<Vec<u8>>, finish: Finish) -> JobResult<Vec<u8>> {
    let picture = match picture {
        DynamicImage::ImageRgba8(pixels) if finish.format == PictureFormat::Jpeg => {
            DynamicImage::ImageRgb8(on_background(&pixels, finish.background))
        }
        // WebP knows no grey.
        grey if finish.format == PictureFormat::Webp && !grey.color().has_color() => {
            DynamicImage::ImageRgb8(grey.into_rgb8())
        }
        other => other,
    };
    let profile = profile.filter(|profile| describes(profile, &picture));
    let mut bytes = Vec::new();
    let written = match finish.format {
        PictureFormat::Jpeg => {
            let encoder = JpegEncoder::new_with_quality(&mut bytes, finish.quality);
            write(&picture, profile, encoder)
        }
        PictureFormat::Png => {
            let (compression, filter) = (CompressionType::Default, PngFilter::Adaptive);
            let encoder = PngEncoder::new_with_quality(&mut bytes, compression, filter);
            write(&picture, profile, encoder)
        }
        PictureFormat::Webp => write(&picture, profile, WebPEncoder::new_lossless(&mut bytes)),
        PictureFormat::Gif => {
            return Err(JobError::reject(anyhow!("a GIF is read, but not written")));
        }
    };
    written
        .map_err(|error| JobError::reject(anyhow!("the thumbnail cannot be encoded: {error}")))?;
    Ok(bytes)
}

fn write(
    picture: &DynamicImage,
    profile: Option<Vec<u8>>,
    mut encoder: impl ImageEncoder,
) -> Result<(), ImageError> {
    if let Some(profile) = profile {
        // All three formats take one; without it the picture is still a picture.
        encoder.set_icc_profile(profile).ok();
    }
    picture.write_with_encoder(encoder)
}

/// Whether a colour profile is for pixels such as these: that of a CMYK picture, say, is not, once
/// it has been decoded to red, green and blue.
fn describes(profile: &[u8], picture: &DynamicImage) -> bool {
    let space = if picture.color().has_color() { b"RGB " } else { b"GRAY" };
    profile.get(16..20) == Some(space)
}

/// What a decoder refuses will never be a picture.
fn broken(error: &ImageError) -> JobError {
    JobError::reject(match error {
        ImageError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            anyhow!("the file ends before the picture does")
        }
        ImageError::Limits(_) => anyhow!("it takes more memory than `max_pixels` allows ({error})"),
        error => anyhow!("it cannot be decoded: {error}"),
    })
}

impl PictureFormat {
    fn of_library(self) -> ImageFormat {
        match self {
            Self::Jpeg => ImageFormat::Jpeg,
            Self::Png => ImageFormat::Png,
            Self::Webp => ImageFormat::WebP,
            Self::Gif => ImageFormat::Gif,
        }
    }
}
