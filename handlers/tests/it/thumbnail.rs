//! The built-in `image.thumbnail`, on pictures made here.

use std::fs;
use std::io::Cursor;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use forebay_handlers::{PictureFormat, Thumbnail, ThumbnailOptions};
use forebay_worker::testing::{self, Fate};
use forebay_worker::{Envelope, HandlerOptions, QueueOptions, Worker};
use image::codecs::gif::GifEncoder;
use image::codecs::png::PngEncoder;
use image::{
    DynamicImage, Frame, GenericImageView, ImageBuffer, ImageDecoder, ImageEncoder, ImageFormat,
    ImageReader, Pixel, Rgb, RgbImage, Rgba, RgbaImage,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

use crate::support::{Run, Site, last_words};

/// A red square of 16 × 16 in the four inks of print, with the marker of the program that every
/// such file comes from.
const CMYK: &str = "/9j/7gAOQWRvYmUAZAAAAAAA/9sAQwADAgIDAgIDAwMDBAMDBAUIBQUEBAUKBwcGCAwKDAwLCgsLDQ4SEA0\
    OEQ4LCxAWEBETFBUVFQwPFxgWFBgSFBUU/8AAFAgAEAAQBEMRAE0RAFkRAEsRAP/EAB8AAAEFAQEBAQEBAAAAAAAAAAABAgMEBQYH\
    CAkKC//EALUQAAIBAwMCBAMFBQQEAAABfQECAwAEEQUSITFBBhNRYQcicRQygZGhCCNCscEVUtHwJDNicoIJChYXGBkaJSYnKCkqN\
    DU2Nzg5OkNERUZHSElKU1RVVldYWVpjZGVmZ2hpanN0dXZ3eHl6g4SFhoeIiYqSk5SVlpeYmZqio6Slpqeoqaqys7S1tre4ubrCw8\
    TFxsfIycrS09TV1tfY2drh4uPk5ebn6Onq8fLz9PX29/j5+v/aAA4EQwBNAFkASwAAPwD9U6/Kqvyqr9U6KKKKKKKKKKKK/9k=";

/// A folder with pictures and one for thumbnails.
struct Studio {
    all: TempDir,
    worker: Worker<()>,
}

impl Studio {
    fn new() -> Self {
        Self::with(|options| options)
    }

    fn with(change: impl FnOnce(ThumbnailOptions) -> ThumbnailOptions) -> Self {
        let all = TempDir::new().unwrap();
        let [pictures, thumbnails] = ["pictures", "thumbnails"].map(|name| all.path().join(name));
        fs::create_dir(&pictures).unwrap();
        fs::create_dir(&thumbnails).unwrap();
        let options = change(ThumbnailOptions::new([pictures], [thumbnails]));
        let thumbnail = Thumbnail::new(&options).unwrap();
        let worker = Worker::builder(())
            .queue("default", QueueOptions::new())
            .handle_raw_blocking(Thumbnail::NAME, HandlerOptions::new(), thumbnail.handler())
            .build()
            .unwrap();
        Self { all, worker }
    }

    fn picture(&self, name: &str) -> PathBuf {
        self.all.path().join("pictures").join(name)
    }

    fn thumbnail(&self, name: &str) -> PathBuf {
        self.all.path().join("thumbnails").join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.picture(name), bytes).unwrap();
    }

    /// Runs a job that names files of the studio.
    async fn run(&self, name: &str, output: &str, more: Value) -> Fate {
        let mut payload = json!({ "path": self.picture(name), "output": self.thumbnail(output) });
        for (key, value) in more.as_object().unwrap() {
            payload[key] = value.clone();
        }
        let job = Envelope::new(Thumbnail::NAME, "default", payload.to_string());
        testing::run_envelope(&self.worker, job).await
    }

    async fn made(&self, name: &str, output: &str, more: Value) -> (Value, DynamicImage) {
        let fate = self.run(name, output, more).await;
        let Fate::Done(result) = fate else { panic!("{name}: {fate:?}") };
        let made = image::open(self.thumbnail(output)).unwrap();
        assert_eq!(result["width"], made.width());
        assert_eq!(result["height"], made.height());
        assert_eq!(result["bytes"], fs::metadata(self.thumbnail(output)).unwrap().len());
        (result, made)
    }

    async fn refused(&self, name: &str, output: &str, more: Value) -> String {
        match self.run(name, output, more).await {
            Fate::Dead { reason, message } if reason == "rejected" => message,
            fate => panic!("{name}: {fate:?}"),
        }
    }
}

fn encoded(picture: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    picture.into().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// Not unlike a photograph: a sky that fades, something red to the left, grain.
fn photo(width: u32, height: u32) -> RgbImage {
    let mut grain = 1_u32;
    RgbImage::from_fn(width, height, |x, y| {
        grain = grain.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let noise = u8::try_from(grain >> 28).unwrap();
        let light = u8::try_from(y * 200 / height).unwrap();
        let red = if x < width / 4 { 230 } else { light / 2 };
        Rgb([red, light, 220 - light / 2].map(|channel: u8| channel.saturating_add(noise)))
    })
}

fn near(pixel: &impl Pixel<Subpixel = u8>, expected: &[u8]) -> bool {
    let pixel = pixel.channels();
    pixel.len() >= expected.len()
        && pixel.iter().zip(expected).all(|(found, expected)| found.abs_diff(*expected) <= 12)
}

/// A JPEG with an orientation in its metadata, as cameras write it.
fn turned(jpeg: &[u8], orientation: u8) -> Vec<u8> {
    let mut exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
    exif.extend([orientation, 0, 0, 0, 0, 0, 0]);
    let length = u16::try_from(exif.len() + 2).unwrap().to_be_bytes();
    [&jpeg[..2], &[0xFF, 0xE1], &length, &exif, &jpeg[2..]].concat()
}

/// A PNG whose header says another size, with a header that is right in itself.
fn resized(png: &[u8], width: u32, height: u32) -> Vec<u8> {
    let mut bytes = png.to_vec();
    bytes[16..20].copy_from_slice(&width.to_be_bytes());
    bytes[20..24].copy_from_slice(&height.to_be_bytes());
    let sum = crc(&bytes[12..29]).to_be_bytes();
    bytes[29..33].copy_from_slice(&sum);
    bytes
}

fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            if sum & 1 == 1 { (sum >> 1) ^ 0xEDB8_8320 } else { sum >> 1 }
        })
    })
}

#[tokio::test]
async fn a_photo_becomes_a_thumbnail_in_every_format() {
    let studio = Studio::new();
    let large = photo(900, 675);
    for (name, format) in [
        ("a.jpg", ImageFormat::Jpeg),
        ("a.png", ImageFormat::Png),
        ("a.webp", ImageFormat::WebP),
        ("a.gif", ImageFormat::Gif),
    ] {
        studio.write(name, &encoded(large.clone(), format));
        for (output, written) in [("b.jpeg", "jpeg"), ("b.PNG", "png"), ("b.webp", "webp")] {
            let sides = json!({ "width": 200, "height": 200 });
            let (result, made) = studio.made(name, output, sides).await;
            assert_eq!(result["format"], written);
            assert_eq!(result["path"], json!(studio.thumbnail(output)));
            assert_eq!(made.dimensions(), (200, 150));
            let pixel = made.to_rgb8();
            assert!(near(pixel.get_pixel(20, 75), &[237, 107, 177]), "{name} {output}");
            assert!(near(pixel.get_pixel(150, 75), &[57, 107, 177]), "{name} {output}");
        }
    }
    let left: Vec<_> = fs::read_dir(studio.all.path().join("thumbnails")).unwrap().collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

#[tokio::test]
async fn fit_quality_and_enlarging_are_as_asked() {
    let studio = Studio::new();
    studio.write("a.png", &encoded(photo(400, 300), ImageFormat::Png));
    let cases = [
        (json!({ "width": 100 }), (100, 75)),
        (json!({ "height": 30 }), (40, 30)),
        (json!({ "width": 100, "height": 100, "fit": "cover" }), (100, 100)),
        (json!({ "width": 100, "height": 50, "fit": "exact" }), (100, 50)),
        (json!({ "width": 800 }), (400, 300)),
        (json!({ "width": 800, "upscale": true }), (800, 600)),
        (json!({ "width": 1000, "height": 500, "fit": "cover" }), (400, 200)),
    ];
    for (more, size) in cases {
        let (_, made) = studio.made("a.png", "b.png", more.clone()).await;
        assert_eq!(made.dimensions(), size, "{more}");
    }
    let mut bytes = Vec::new();
    for quality in [10, 90] {
        let more = json!({ "width": 200, "quality": quality });
        bytes.push(studio.made("a.png", "b.jpg", more).await.0["bytes"].as_u64().unwrap());
    }
    assert!(bytes[0] * 2 < bytes[1], "{bytes:?}");
    let more = json!({ "width": 9, "format": "png" });
    let Fate::Done(result) = studio.run("a.png", "any-name", more).await else { panic!() };
    assert_eq!((&result["width"], &result["height"]), (&json!(9), &json!(7)));
}

#[tokio::test]
async fn the_orientation_is_applied_and_no_metadata_copied() {
    let studio = Studio::new();
    // Red to the left.
    let plain = encoded(photo(400, 200), ImageFormat::Jpeg);
    let corners = [(5, 5), (-5, 5), (5, -5), (-5, -5)];
    let red = |made: &DynamicImage| {
        let (width, height) = made.dimensions();
        corners.map(|(x, y): (i32, i32)| {
            let at = |by: i32, side: u32| {
                if by < 0 { side - by.unsigned_abs() } else { by.unsigned_abs() }
            };
            made.get_pixel(at(x, width), at(y, height)).0[0] > 150
        })
    };
    let (top, bottom, left, right) = (
        [true, true, false, false],
        [false, false, true, true],
        [true, false, true, false],
        [false, true, false, true],
    );
    let sizes = [(100, 50), (50, 100)];
    let cases = [
        (1, sizes[0], left),
        (2, sizes[0], right),
        (3, sizes[0], right),
        (4, sizes[0], left),
        (5, sizes[1], top),
        (6, sizes[1], top),
        (7, sizes[1], bottom),
        (8, sizes[1], bottom),
    ];
    for (orientation, size, expected) in cases {
        studio.write("a.jpg", &turned(&plain, orientation));
        let more = json!({ "width": 100, "height": 100 });
        let (_, made) = studio.made("a.jpg", "b.jpg", more).await;
        assert_eq!((made.dimensions(), red(&made)), (size, expected), "{orientation}");
        let bytes = fs::read(studio.thumbnail("b.jpg")).unwrap();
        assert!(!bytes.windows(4).any(|part| part == b"Exif"));
    }
}

#[tokio::test]
async fn a_colour_profile_is_kept_and_only_if_it_is_for_such_colours() {
    let studio = Studio::new();
    for (space, kept) in [(b"RGB ", true), (b"CMYK", false)] {
        let mut profile = vec![0; 128];
        profile[16..20].copy_from_slice(space);
        let mut bytes = Vec::new();
        let mut encoder = PngEncoder::new(&mut bytes);
        encoder.set_icc_profile(profile.clone()).unwrap();
        DynamicImage::from(photo(40, 30)).write_with_encoder(encoder).unwrap();
        studio.write("a.png", &bytes);
        for output in ["b.jpg", "b.png", "b.webp"] {
            studio.made("a.png", output, json!({ "width": 20 })).await;
            let reader = ImageReader::open(studio.thumbnail(output)).unwrap();
            let found = reader.into_decoder().unwrap().icc_profile().unwrap();
            assert_eq!(found, kept.then(|| profile.clone()), "{output}");
        }
    }
}

#[tokio::test]
async fn every_sort_of_colour_comes_out_right() {
    let studio = Studio::new();
    let half = |x: u32| x < 20;
    let deep = ImageBuffer::from_pixel(40, 40, Rgb([65_535_u16, 32_768, 0]));
    studio.write("deep.png", &encoded(deep, ImageFormat::Png));
    let grey = ImageBuffer::from_pixel(40, 40, image::Luma([32_768_u16]));
    studio.write("grey.png", &encoded(grey, ImageFormat::Png));
    studio.write("print.jpg", &STANDARD.decode(CMYK).unwrap());
    // What cannot be seen is bright green, and must not shine through at the edge.
    let clear = RgbaImage::from_fn(40, 40, |x, _| {
        if half(x) { Rgba([200, 0, 0, 255]) } else { Rgba([0, 255, 0, 0]) }
    });
    studio.write("clear.png", &encoded(clear.clone(), ImageFormat::Png));
    studio.write("clear.gif", &encoded(clear, ImageFormat::Gif));

    let tiny = |more: Value| {
        let mut sides = json!({ "width": 10, "height": 10 });
        more.as_object().unwrap().iter().for_each(|(key, value)| sides[key] = value.clone());
        sides
    };
    let (_, made) = studio.made("deep.png", "b.png", tiny(json!({}))).await;
    assert!(near(made.to_rgb8().get_pixel(5, 5), &[255, 128, 0]));
    assert_eq!(made.color(), image::ColorType::Rgb8);
    for output in ["b.png", "b.jpg", "b.webp"] {
        let (_, made) = studio.made("grey.png", output, tiny(json!({}))).await;
        assert!(near(made.to_rgb8().get_pixel(5, 5), &[128, 128, 128]), "{output}");
    }
    let (_, made) = studio.made("print.jpg", "b.jpg", tiny(json!({}))).await;
    let red = made.to_rgb8().get_pixel(5, 5).0;
    assert!(red[0] > 200 && red[1] < 60 && red[2] < 60, "{red:?}");

    for name in ["clear.png", "clear.gif"] {
        let (_, made) = studio.made(name, "b.png", tiny(json!({}))).await;
        let made = made.to_rgba8();
        assert!(near(made.get_pixel(1, 5), &[200, 0, 0, 255]));
        assert_eq!(made.get_pixel(9, 5).0[3], 0);
        let greenest = made.pixels().filter(|pixel| pixel.0[3] > 8).map(|pixel| pixel.0[1]).max();
        assert!(greenest <= Some(12), "{name}: {greenest:?}");
        let (_, made) = studio.made(name, "b.jpg", tiny(json!({}))).await;
        assert!(near(made.to_rgb8().get_pixel(9, 5), &[255, 255, 255]));
        let blue = tiny(json!({ "background": "#0000ff" }));
        let (_, made) = studio.made(name, "b.jpg", blue).await;
        let blue = made.to_rgb8().get_pixel(9, 5).0;
        assert!(blue[0] < 20 && blue[1] < 20 && blue[2] > 230, "{blue:?}");
    }
}

#[tokio::test]
async fn of_an_animation_the_first_frame_counts() {
    let studio = Studio::new();
    let mut bytes = Vec::new();
    let frame = |colour| Frame::new(RgbaImage::from_pixel(40, 40, Rgba(colour)));
    let frames = [frame([255, 0, 0, 255]), frame([0, 0, 255, 255])];
    GifEncoder::new(&mut bytes).encode_frames(frames).unwrap();
    studio.write("a.gif", &bytes);
    let (_, made) = studio.made("a.gif", "b.png", json!({ "width": 10 })).await;
    assert!(near(made.to_rgb8().get_pixel(5, 5), &[255, 0, 0]));
}

#[tokio::test]
async fn a_second_run_replaces_the_first_ones_file_and_says_so() {
    let studio = Studio::new();
    studio.write("a.png", &encoded(photo(40, 30), ImageFormat::Png));
    let more = json!({ "width": 10 });
    let (first, _) = studio.made("a.png", "2026/11/b.png", more.clone()).await;
    assert_eq!(first["replaced"], false);
    let before = fs::read(studio.thumbnail("2026/11/b.png")).unwrap();
    let (second, _) = studio.made("a.png", "2026/11/b.png", more).await;
    assert_eq!(second["replaced"], true);
    assert_eq!(fs::read(studio.thumbnail("2026/11/b.png")).unwrap(), before);
}

#[tokio::test]
async fn a_picture_too_large_to_decode_is_refused_by_its_header() {
    let studio = Studio::new();
    let small = encoded(photo(1, 1), ImageFormat::Png);
    studio.write("bomb.png", &resized(&small, 50_000, 50_000));
    let words = studio.refused("bomb.png", "b.png", json!({ "width": 10 })).await;
    let path = studio.picture("bomb.png");
    assert_eq!(
        words,
        format!(
            "`{}`: it has 50000 × 50000 pixels, more than the 25000000 of `max_pixels`",
            path.display()
        )
    );
    // A header of a size that is allowed, and less behind it.
    studio.write("hollow.png", &resized(&small, 5_000, 5_000));
    let words = studio.refused("hollow.png", "b.png", json!({ "width": 10 })).await;
    assert!(words.contains("cannot be decoded") || words.contains("ends before"), "{words}");
    assert!(!studio.thumbnail("b.png").exists());

    let strict = Studio::with(|options| options.max_pixels(100).max_file(2_000));
    strict.write("a.png", &encoded(photo(20, 20), ImageFormat::Png));
    let words = strict.refused("a.png", "b.png", json!({ "width": 10 })).await;
    assert!(words.contains("20 × 20 pixels, more than the 100 of `max_pixels`"), "{words}");
    strict.write("a.png", &vec![0; 3_000]);
    let words = strict.refused("a.png", "b.png", json!({ "width": 10 })).await;
    assert!(words.contains("3000 bytes, more than the 2000 of `max_file`"), "{words}");
    strict.write("a.png", &encoded(photo(9, 9), ImageFormat::Png));
    // Nearly as large as the picture: the sharp filter would take more memory than there is.
    let (_, made) = strict.made("a.png", "b.png", json!({ "width": 8 })).await;
    assert_eq!((made.width(), made.height()), (8, 8));
    let words = strict.refused("a.png", "b.png", json!({ "width": 11, "upscale": true })).await;
    assert!(words.contains("11 × 11 pixels, more than the 100 of `max_pixels`"), "{words}");
}

#[tokio::test]
async fn broken_pictures_are_refused_with_the_reason() {
    let studio = Studio::new();
    let large = photo(300, 300);
    for (name, format) in [
        ("a.jpg", ImageFormat::Jpeg),
        ("a.png", ImageFormat::Png),
        ("a.webp", ImageFormat::WebP),
        ("a.gif", ImageFormat::Gif),
    ] {
        let whole = encoded(large.clone(), format);
        // With an end inside, as that of an embedded thumbnail.
        let whole = if name == "a.jpg" { turned(&whole, 1) } else { whole };
        for length in [12, 30, whole.len() / 2, whole.len() - 20] {
            studio.write(name, &whole[..length]);
            let words = studio.refused(name, "b.png", json!({ "width": 10 })).await;
            let known = ["ends before the picture does", "cannot be decoded"];
            assert!(known.iter().any(|known| words.contains(known)), "{name} {length}: {words}");
            assert!(words.contains(&studio.picture(name).display().to_string()), "{words}");
        }
        let mut garbage = whole.clone();
        garbage.iter_mut().skip(16).for_each(|byte| *byte = byte.wrapping_mul(31) ^ 0x5A);
        studio.write(name, &garbage);
        studio.refused(name, "b.png", json!({ "width": 10 })).await;
    }
    for (bytes, words) in [
        (&b""[..], "begins as no picture does that can be read (jpeg, png, webp, gif)"),
        (b"hello", "begins as no picture"),
        (b"BM plus anything", "begins as no picture"),
    ] {
        studio.write("a.png", bytes);
        let found = studio.refused("a.png", "b.png", json!({ "width": 10 })).await;
        assert!(found.contains(words), "{found}");
    }
    let only = Studio::with(|options| options.formats([PictureFormat::Jpeg, PictureFormat::Png]));
    only.write("a.gif", &encoded(large, ImageFormat::Gif));
    let found = only.refused("a.gif", "b.png", json!({ "width": 10 })).await;
    assert!(found.contains("it is a gif picture, and `formats` allows jpeg, png only"), "{found}");
    assert!(!studio.thumbnail("b.png").exists());
}

#[tokio::test]
async fn only_regular_files_within_the_folders_are_read_and_written() {
    let studio = Studio::new();
    let outside = TempDir::new().unwrap();
    let picture = encoded(photo(40, 30), ImageFormat::Png);
    fs::write(outside.path().join("a.png"), &picture).unwrap();
    studio.write("a.png", &picture);
    symlink(outside.path().join("a.png"), studio.picture("link.png")).unwrap();
    symlink(outside.path(), studio.thumbnail("out")).unwrap();
    symlink(outside.path().join("new"), studio.thumbnail("dangling")).unwrap();
    symlink(outside.path().join("b.png"), studio.thumbnail("link.png")).unwrap();
    fs::create_dir(studio.thumbnail("folder.png")).unwrap();
    for (tool, name) in
        [("mkfifo", studio.picture("pipe")), ("mkfifo", studio.thumbnail("pipe.png"))]
    {
        assert!(std::process::Command::new(tool).arg(name).status().unwrap().success());
    }
    let _socket = UnixListener::bind(studio.picture("socket")).unwrap();
    let sides = json!({ "width": 10 });
    for (name, words) in [
        ("link.png", "is outside the folders that may be read"),
        ("../../etc/passwd", "is outside the folders that may be read"),
        ("../thumbnails/b.png", "is outside the folders that may be read"),
        ("/dev/zero", "is outside the folders that may be read"),
        ("missing.png", "No such file"),
        ("pipe", "is no regular file"),
        ("socket", "is no regular file"),
        ("", "is no regular file"),
    ] {
        let found = studio.refused(name, "b.png", sides.clone()).await;
        assert!(found.contains(words), "{name}: {found}");
    }
    for (output, words) in [
        ("../b.png", "is outside the folders that may be written to"),
        ("../pictures/b.png", "is outside the folders that may be written to"),
        ("/tmp/b.png", "is outside the folders that may be written to"),
        ("out/b.png", "is outside the folders that may be written to"),
        ("out/new/b.png", "is outside the folders that may be written to"),
        ("dangling/b.png", "is outside the folders that may be written to"),
        ("link.png", "is there and no regular file"),
        ("folder.png", "is there and no regular file"),
        ("pipe.png", "is there and no regular file"),
    ] {
        let found = studio.refused("a.png", output, sides.clone()).await;
        assert!(found.contains(words), "{output}: {found}");
    }
    let long = format!("{}.png", "x".repeat(300));
    let found = studio.refused("a.png", &long, sides.clone()).await;
    assert!(found.contains("cannot write") && found.contains("name too long"), "{found}");
    let entries = fs::read_dir(outside.path()).unwrap().count();
    assert_eq!(entries, 1);
    // A picture may lie where thumbnails are written, but is not overwritten by its own.
    let both = Studio::with(|_| ThumbnailOptions::new([studio.all.path()], [studio.all.path()]));
    let path = studio.picture("a.png");
    let payload = json!({ "path": path, "output": path, "width": 10 });
    let job = Envelope::new(Thumbnail::NAME, "default", payload.to_string());
    let fate = testing::run_envelope(&both.worker, job).await;
    assert!(format!("{fate:?}").contains("would replace the picture itself"), "{fate:?}");
    assert_eq!(fs::read(path).unwrap(), picture);
}

#[tokio::test]
async fn what_a_job_says_wrongly_is_named() {
    let studio = Studio::new();
    studio.write("a.png", &encoded(photo(40, 30), ImageFormat::Png));
    for (output, more, words) in [
        ("b.png", json!({}), "say how large: add `width`, `height` or both"),
        ("b.png", json!({ "width": 0 }), "`width` is 0; it goes from 1 to 10000"),
        ("b.png", json!({ "height": 10_001 }), "`height` is 10001"),
        (
            "b.png",
            json!({ "width": 9, "fit": "cover" }),
            "fit = \"cover\" needs `width` and `height`",
        ),
        (
            "b.png",
            json!({ "width": 9, "fit": "fill" }),
            "unknown variant, expected one of `contain`",
        ),
        ("b.png", json!({ "widht": 9 }), "unknown field `widht`"),
        ("b.png", json!({ "width": "9" }), "a job looks like"),
        ("b", json!({ "width": 9 }), "does not end in .jpg, .png or .webp; add `format`"),
        ("b.gif", json!({ "width": 9 }), "a GIF is read, but not written"),
        ("b.png", json!({ "width": 9, "format": "jpeg" }), "ends as a png, and `format` is jpeg"),
        ("b.jpg", json!({ "width": 9, "quality": 101 }), "`quality` is 101; it goes from 1 to 100"),
        ("b.jpg", json!({ "width": 9, "background": "red" }), "`background` is \"red\""),
    ] {
        let found = studio.refused("a.png", output, more.clone()).await;
        assert!(found.contains(words), "{more}: {found}");
    }
    studio.write("line.png", &encoded(photo(1, 4_000), ImageFormat::Png));
    let more = json!({ "width": 100, "upscale": true });
    let found = studio.refused("line.png", "b.png", more).await;
    assert!(found.contains("would have 100 × 400000 pixels; 10000 is the longest side"), "{found}");
}

const MANIFEST: &str =
    "use = \"image.thumbnail\"\nroots = [\"pictures\"]\ninto = [\"thumbnails\"]\nretry = \"never\"";

async fn site(manifest: &str) -> Site {
    let site = Site::with(manifest).await;
    for folder in ["pictures", "thumbnails"] {
        fs::create_dir(site.file(folder)).unwrap();
    }
    fs::write(site.file("pictures/a.png"), encoded(photo(400, 300), ImageFormat::Png)).unwrap();
    site
}

#[tokio::test]
async fn jobs_of_a_manifest_become_thumbnails_or_dead_letters() {
    let site = site(MANIFEST).await;
    let check = site.command(&["--check"]).output().await.unwrap();
    let text = String::from_utf8(check.stdout).unwrap();
    assert!(text.contains("image.thumbnail"), "{text}");
    let run = site.run().await;
    let (path, output) = (site.file("pictures/a.png"), site.file("thumbnails/b.jpg"));
    let job = json!({ "path": path, "output": output, "width": 40 });
    let result = site.call(job.clone()).await.unwrap();
    assert_eq!((&result["width"], &result["height"]), (&json!(40), &json!(30)));
    assert_eq!(image::open(&output).unwrap().dimensions(), (40, 30));
    fs::write(&path, "garbage").unwrap();
    site.publish(job).await;
    let letter = site.dead().await;
    assert!(last_words(&letter).contains("begins as no picture"), "{letter:?}");
    run.drain().await;
}

#[tokio::test]
async fn without_room_for_it_nothing_half_written_is_left_and_the_job_is_no_reject() {
    let site = site(MANIFEST).await;
    // A limit on the size of files stands for a disk that is full: a write ends midway.
    let plain = site.command(&[]);
    let mut limited = Command::new("/bin/sh");
    limited
        .args(["-c", "trap '' XFSZ; ulimit -f 2; exec \"$0\""])
        .arg(plain.as_std().get_program());
    for (name, value) in plain.as_std().get_envs() {
        value.map(|value| limited.env(name, value));
    }
    limited.current_dir(site.folder.path()).stdin(Stdio::null());
    limited.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let run = Run::start(limited);
    let (path, output) = (site.file("pictures/a.png"), site.file("thumbnails/b.png"));
    site.publish(json!({ "path": path, "output": output, "width": 100 })).await;
    let letter = site.dead().await;
    // Not `rejected`: with `retry`, it would have come again.
    assert_eq!(letter.reason, "failed");
    let expected = format!("cannot write `{}`: File too large", output.display());
    assert!(last_words(&letter).starts_with(&expected), "{letter:?}");
    assert!(last_words(&letter).contains("ulimit -f"), "{letter:?}");
    assert_eq!(entries(&site.file("thumbnails")), 0);
    run.drain().await;
}

fn entries(folder: &Path) -> usize {
    fs::read_dir(folder).unwrap().count()
}
