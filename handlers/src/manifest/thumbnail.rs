//! `use = "image.thumbnail"`: its keys.
//! In: a function's table. Out: the settings of the function.

use std::path::Path;

use super::built_in::{READ, required_folders};
use super::function::Runs;
use super::section::Section;
use super::units::{self, wrong};
use crate::thumbnail::{PictureFormat, ThumbnailOptions};

pub(super) fn read(section: &mut Section<'_, '_>, folder: &Path) -> Option<Runs> {
    let roots = required_folders(section, folder, "roots", "may read nowhere", READ);
    let remedy = "name the folders that thumbnails may be written to: into = [\"/srv/thumbnails\"]";
    let into = required_folders(section, folder, "into", "may write nowhere", remedy);
    let max_pixels = section.get("max_pixels", |value| units::number(value, 1..=10_000_000_000));
    let max_file = section.get("max_file", units::size);
    let formats = section.get("formats", |value| {
        let names = units::texts(value)?;
        names.iter().map(|name| format(name)).collect::<units::Read<Vec<_>>>()
    });
    let mut options = ThumbnailOptions::new(roots?, into?);
    if let Some(pixels) = max_pixels {
        options = options.max_pixels(pixels);
    }
    if let Some(bytes) = max_file {
        options = options.max_file(bytes as u64);
    }
    if let Some(formats) = formats {
        options = options.formats(formats);
    }
    Some(Runs::Thumbnail { options })
}

fn format(name: &str) -> units::Read<PictureFormat> {
    let known = PictureFormat::ALL.into_iter().find(|format| format.name() == name);
    let names = || PictureFormat::ALL.map(PictureFormat::name).join("\", \"");
    known.ok_or_else(|| {
        wrong(format!("has {name:?}, which is no format"), format!("known are \"{}\"", names()))
    })
}

#[cfg(test)]
mod tests {
    use super::super::Manifest;
    use super::*;

    fn function(lines: &str) -> Result<Runs, Vec<String>> {
        let text = format!("[functions.\"a.b\"]\nuse = \"image.thumbnail\"\n{lines}");
        match Manifest::parse(&text, "/srv/f") {
            Ok(manifest) => Ok(manifest.functions["a.b"].runs.clone()),
            Err(faults) => Err(faults.0.iter().map(ToString::to_string).collect()),
        }
    }

    #[test]
    fn every_key_is_read_and_what_is_missing_or_wrong_is_told() {
        let all = r#"
roots = ["in"]
into = ["out"]
max_pixels = 1_000
max_file = "1MB"
formats = ["png"]
"#;
        let options = ThumbnailOptions::new(["/srv/in"], ["/srv/out"]);
        let options = options.max_pixels(1_000).max_file(1_000_000).formats([PictureFormat::Png]);
        assert_eq!(function(all), Ok(Runs::Thumbnail { options }));

        let found = function("formats = [\"tiff\"]").unwrap_err();
        let expected = [
            "/srv/f:1:12: [functions.\"a.b\"] may read nowhere; name the folders whose files a job may ask for",
            "/srv/f:1:12: [functions.\"a.b\"] may write nowhere; name the folders that thumbnails may be written to",
            "/srv/f:3:11: `formats` in [functions.\"a.b\"] has \"tiff\", which is no format; known are \"jpeg\", \"png\"",
        ];
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(expected), "{found}");
        }
    }
}
