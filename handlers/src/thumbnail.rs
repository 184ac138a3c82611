//! `image.thumbnail`: a smaller picture of a picture.
//! In: `{"path": …, "output": …, "width": 200, "height": 200}`. Out: the thumbnail, written whole or
//! not at all, its size and format; from and to the configured folders only.

mod fit;
mod memory;
mod picture;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::anyhow;
use bytes::Bytes;
use forebay_worker::{Context, JobError, JobResult, Output, without_value};
use serde::{Deserialize, Serialize};

use crate::roots::{Roots, RootsError};
use fit::Fit;
use memory::Memory;
use picture::{Finish, Picture};

/// The longest side of a thumbnail.
const LONGEST: u32 = 10_000;

/// What all runs together hold at once, for each of `max_pixels`: the deepest picture, 16 bits each
/// of red, green, blue and alpha, twice.
const BYTES_A_PIXEL: u64 = 16;

/// A format of pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum PictureFormat {
    /// JPEG.
    Jpeg,
    /// PNG.
    Png,
    /// WebP. It is read in both kinds and written without loss.
    Webp,
    /// GIF. It is read, its first frame, and not written.
    Gif,
}

/// What [`Thumbnail`] may read, write and spend.
///
/// ```
/// use forebay_handlers::{PictureFormat, ThumbnailOptions};
///
/// let options = ThumbnailOptions::new(["/tmp"], ["/tmp"])
///     .max_pixels(20_000_000)
///     .max_file(10_000_000)
///     .formats([PictureFormat::Jpeg, PictureFormat::Png]);
/// # let _ = options;
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct ThumbnailOptions {
    roots: Vec<PathBuf>,
    into: Vec<PathBuf>,
    max_pixels: u64,
    max_file: u64,
    formats: Vec<PictureFormat>,
}

/// Makes thumbnails of pictures within given folders.
///
/// # The contract
///
/// | of the payload | | default |
/// |---|---|---|
/// | `path` | the picture, an absolute path within the roots | – |
/// | `output` | the thumbnail, an absolute path within the folders to write to. Missing folders are created, an older file is replaced | – |
/// | `width`, `height` | pixels, 1 to 10,000. One of them is enough for `contain` | – |
/// | `fit` | `contain`: all of it within the size; `cover`: the size filled, the rest cut off; `exact`: squeezed | `contain` |
/// | `upscale` | whether a small picture is enlarged | `false` |
/// | `format` | `jpeg`, `png` or `webp` (without loss) | by the ending of `output` |
/// | `quality` | of a JPEG, 1 to 100 | 85 |
/// | `background` | what shows through a transparent picture in a JPEG, as `#rrggbb` | `#ffffff` |
///
/// The result is `{"path", "width", "height", "bytes", "format", "replaced"}`; `replaced` says
/// whether a file was there before. The orientation in the metadata is applied; of the metadata
/// only a colour profile is kept. The first frame of an animation counts. Channels have 8 bits.
///
/// A picture that is missing, outside of the roots, broken, too large or of another format, an
/// output outside or that is no regular file, and a payload of another shape make the job a dead
/// letter. What a person can mend (no space, no permission) is retried.
///
/// All runs of one `Thumbnail` and its clones together hold up to 16 bytes for each of
/// [`max_pixels`](ThumbnailOptions::max_pixels), 400 MB by default, besides their files: a run that
/// finds no room waits for the others. A decoder cannot be interrupted: after a timeout it runs on
/// to its end and keeps its place meanwhile.
///
/// ```
/// use forebay_handlers::{Thumbnail, ThumbnailOptions};
/// use forebay_worker::{HandlerOptions, QueueOptions, Worker};
///
/// let thumbnail = Thumbnail::new(&ThumbnailOptions::new(["/tmp"], ["/tmp"]))?;
/// let worker = Worker::builder(())
///     .queue("default", QueueOptions::new())
///     .handle_raw_blocking(Thumbnail::NAME, HandlerOptions::new(), thumbnail.handler())
///     .build()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Thumbnail {
    roots: Roots,
    into: Roots,
    max_pixels: u64,
    max_file: u64,
    formats: Arc<[PictureFormat]>,
    memory: Arc<Memory>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Job {
    path: PathBuf,
    output: PathBuf,
    width: Option<u32>,
    height: Option<u32>,
    #[serde(default)]
    fit: Fit,
    #[serde(default)]
    upscale: bool,
    format: Option<PictureFormat>,
    quality: Option<u8>,
    background: Option<String>,
}

#[derive(Debug, Serialize)]
struct Made<'a> {
    path: &'a Path,
    width: u32,
    height: u32,
    bytes: usize,
    format: PictureFormat,
    replaced: bool,
}

impl PictureFormat {
    /// Every format.
    pub const ALL: [Self; 4] = [Self::Jpeg, Self::Png, Self::Webp, Self::Gif];

    /// As payloads and manifests write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Jpeg => "jpeg",
            Self::Png => "png",
            Self::Webp => "webp",
            Self::Gif => "gif",
        }
    }

    fn of_ending(path: &Path) -> Option<Self> {
        let ending = path.extension()?.to_str()?.to_ascii_lowercase();
        let name = if ending == "jpg" { "jpeg" } else { &ending };
        Self::ALL.into_iter().find(|format| format.name() == name)
    }
}

impl ThumbnailOptions {
    /// Pictures are read in `roots` and below, thumbnails written in `into` and below. Neither
    /// implies the other.
    pub fn new(
        roots: impl IntoIterator<Item = impl Into<PathBuf>>,
        into: impl IntoIterator<Item = impl Into<PathBuf>>,
    ) -> Self {
        Self {
            roots: roots.into_iter().map(Into::into).collect(),
            into: into.into_iter().map(Into::into).collect(),
            max_pixels: 25_000_000,
            max_file: 100_000_000,
            formats: PictureFormat::ALL.to_vec(),
        }
    }

    /// Sets how many pixels a picture may have, and a thumbnail, width × height. With it goes the
    /// memory that all runs share, 16 bytes for each. Default: 25 million.
    pub fn max_pixels(mut self, pixels: u64) -> Self {
        self.max_pixels = pixels;
        self
    }

    /// Sets how many bytes a picture's file may have. Default: 100 MB.
    pub fn max_file(mut self, bytes: u64) -> Self {
        self.max_file = bytes;
        self
    }

    /// Sets which formats are read. Default: all.
    pub fn formats(mut self, formats: impl IntoIterator<Item = PictureFormat>) -> Self {
        self.formats = formats.into_iter().collect();
        self
    }
}

impl Thumbnail {
    /// What `use = "…"` names in a manifest, and the kind that suggests itself.
    pub const NAME: &'static str = "image.thumbnail";

    /// Looks for the folders.
    ///
    /// # Errors
    /// [`RootsError`] if none is named, or one of them is not there or cannot be used.
    pub fn new(options: &ThumbnailOptions) -> Result<Self, RootsError> {
        Ok(Self {
            roots: Roots::new(&options.roots)?,
            into: Roots::writable(&options.into)?,
            max_pixels: options.max_pixels,
            max_file: options.max_file,
            formats: options.formats.clone().into(),
            memory: Arc::new(Memory::new(options.max_pixels.saturating_mul(BYTES_A_PIXEL))),
        })
    }

    /// The function, for
    /// [`WorkerBuilder::handle_raw_blocking`](forebay_worker::WorkerBuilder::handle_raw_blocking).
    pub fn handler<S: Send + Sync + 'static>(
        self,
    ) -> impl Fn(Bytes, Context<S>) -> JobResult<Output> + Send + Sync + 'static {
        move |payload, cx| self.run(&payload, || cx.is_cancelled())
    }

    fn run(&self, payload: &[u8], stop: impl Fn() -> bool) -> JobResult<Output> {
        let job: Job = serde_json::from_slice(payload).map_err(|error| {
            JobError::reject(anyhow!(
                "a job looks like {{\"path\": …, \"output\": …, \"width\": …}}: {}",
                without_value(&error.to_string())
            ))
        })?;
        let finish = job.finish()?;
        job.check_sides()?;
        let mut file = self.roots.open(&job.path)?;
        let about = |error| about(&job.path, error);
        let bytes = self.read(&mut file, &stop).map_err(about)?;
        let picture = Picture::read(&bytes, &self.formats, self.max_pixels).map_err(about)?;
        let wanted = (job.width, job.height);
        let plan = fit::plan(job.fit, picture.size, wanted, job.upscale)
            .ok_or_else(|| JobError::reject(anyhow!("{}", job.sides_wanted())))?;
        let (width, height) = plan.size;
        if width.max(height) > LONGEST {
            return Err(JobError::reject(anyhow!(
                "the thumbnail of `{}` would have {width} × {height} pixels; {LONGEST} is the longest side",
                job.path.display()
            )));
        }
        if u64::from(width) * u64::from(height) > self.max_pixels {
            return Err(JobError::reject(anyhow!(
                "the thumbnail of `{}` would have {width} × {height} pixels, more than the {} of \
                 `max_pixels`",
                job.path.display(),
                self.max_pixels
            )));
        }
        let place = self.into.place(&job.output)?;
        if place.is_taken_by(&file)? {
            let output = job.output.display();
            return Err(JobError::reject(anyhow!("`{output}` would replace the picture itself")));
        }
        let Some(_share) = self.memory.share(picture.memory(plan), &stop) else {
            return Err(about(JobError::retry(anyhow!("stopped while it waited for memory"))));
        };
        let thumbnail = picture.thumbnail(plan, finish, &stop).map_err(about)?;
        place.write(&thumbnail)?;
        let made = Made {
            path: &job.output,
            width,
            height,
            bytes: thumbnail.len(),
            format: finish.format,
            replaced: place.is_taken(),
        };
        Ok(Output::from_json(serde_json::to_vec(&made)?))
    }

    /// The whole file, in steps so that it stops when its run is over.
    fn read(&self, file: &mut File, stop: impl Fn() -> bool) -> JobResult<Vec<u8>> {
        let length = file.metadata()?.len();
        let mut bytes = Vec::new();
        while length <= self.max_file && bytes.len() as u64 <= self.max_file {
            if stop() {
                return Err(JobError::retry(anyhow!("stopped")));
            }
            if file.by_ref().take(1 << 20).read_to_end(&mut bytes)? == 0 {
                return Ok(bytes);
            }
        }
        let (length, most) = (length.max(bytes.len() as u64), self.max_file);
        Err(JobError::reject(anyhow!("it has {length} bytes, more than the {most} of `max_file`")))
    }
}

impl Job {
    fn finish(&self) -> JobResult<Finish> {
        let reject = |what: String| Err(JobError::reject(anyhow!(what)));
        let by_ending = PictureFormat::of_ending(&self.output);
        let output = self.output.display();
        let format = match (self.format, by_ending) {
            (Some(PictureFormat::Gif), _) | (None, Some(PictureFormat::Gif)) => {
                return reject("a GIF is read, but not written; use jpeg, png or webp".to_owned());
            }
            (Some(format), Some(ending)) if format != ending => {
                let (format, ending) = (format.name(), ending.name());
                return reject(format!("`{output}` ends as a {ending}, and `format` is {format}"));
            }
            (Some(format), _) | (None, Some(format)) => format,
            (None, None) => {
                return reject(format!(
                    "`{output}` does not end in .jpg, .png or .webp; add `format` to the job"
                ));
            }
        };
        let quality = self.quality.unwrap_or(85);
        if !(1..=100).contains(&quality) {
            return reject(format!("`quality` is {quality}; it goes from 1 to 100"));
        }
        let background = self.background.as_deref().unwrap_or("#ffffff");
        let Some(colour) = colour(background) else {
            return reject(format!("`background` is {background:?}; write it as \"#rrggbb\""));
        };
        Ok(Finish { format, quality, background: colour })
    }

    fn check_sides(&self) -> JobResult<()> {
        for (name, side) in [("width", self.width), ("height", self.height)] {
            if let Some(side) = side
                && !(1..=LONGEST).contains(&side)
            {
                return Err(JobError::reject(anyhow!(
                    "`{name}` is {side}; it goes from 1 to {LONGEST}"
                )));
            }
        }
        Ok(())
    }

    fn sides_wanted(&self) -> &'static str {
        match self.fit {
            Fit::Contain => "say how large: add `width`, `height` or both to the job",
            Fit::Cover => "fit = \"cover\" needs `width` and `height`",
            Fit::Exact => "fit = \"exact\" needs `width` and `height`",
        }
    }
}

fn colour(text: &str) -> Option<[u8; 3]> {
    hex::decode(text.strip_prefix('#')?).ok()?.try_into().ok()
}

/// Says which file an error is about, keeping what is to happen.
fn about(path: &Path, error: JobError) -> JobError {
    let words = format!("`{}`: {}", path.display(), error.message());
    error.because(anyhow!(words))
}
