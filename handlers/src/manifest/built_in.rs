//! The functions that `use = "…"` names.
//! In: a function's table. Out: what runs, with the settings of that function.

use std::path::{Path, PathBuf};

use super::function::Runs;
use super::section::Section;
use super::units::{self, wrong};
use crate::digest::FileDigest;

/// Every name, compiled in or not.
const NAMES: [&str; 3] = ["email.send", FileDigest::NAME, "image.thumbnail"];

pub(super) fn read(section: &mut Section<'_, '_>, folder: &Path) -> Option<Runs> {
    let name = section.get("use", |value| {
        let name = units::text(value)?;
        match NAMES.into_iter().find(|known| *known == name) {
            Some(known) => is_compiled_in(known).map(|()| known),
            None => {
                let remedy = format!("the built-in functions are: \"{}\"", NAMES.join("\", \""));
                Err(wrong(format!("names {name:?}, which is not built in"), remedy))
            }
        }
    });
    match name {
        #[cfg(feature = "email")]
        Some(crate::Email::NAME) => super::email::read(section, folder),
        #[cfg(feature = "image")]
        Some(crate::Thumbnail::NAME) => super::thumbnail::read(section, folder),
        Some(_) => read_digest(section, folder),
        None => None,
    }
}

fn is_compiled_in(name: &str) -> units::Read<()> {
    let feature = match name {
        "email.send" if cfg!(not(feature = "email")) => "email",
        "image.thumbnail" if cfg!(not(feature = "image")) => "image",
        _ => return Ok(()),
    };
    let remedy = format!("build forebay-handlers with feature `{feature}`");
    Err(wrong(format!("names {name:?}, which was not compiled into this program"), remedy))
}

fn read_digest(section: &mut Section<'_, '_>, folder: &Path) -> Option<Runs> {
    let roots = required_folders(section, folder, "roots", "may read nowhere", READ)?;
    Some(Runs::FileDigest { roots })
}

/// What to write where `roots` is missing.
pub(super) const READ: &str =
    "name the folders whose files a job may ask for: roots = [\"/srv/files\"]";

/// A list of folders that must be there, relative to the manifest's.
pub(super) fn required_folders(
    section: &mut Section<'_, '_>,
    folder: &Path,
    key: &'static str,
    without: &str,
    remedy: &str,
) -> Option<Vec<PathBuf>> {
    if !section.has(key) {
        section.fault(format!("{} {without}", section.name), remedy);
    }
    folders(section, folder, key)
}

/// A list of folders, relative to the manifest's.
pub(super) fn folders(
    section: &mut Section<'_, '_>,
    folder: &Path,
    key: &'static str,
) -> Option<Vec<PathBuf>> {
    let folders = section.get(key, units::texts)?;
    Some(folders.into_iter().map(|name| folder.join(name)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_that_was_not_compiled_in_names_its_feature() {
        for (name, feature, compiled_in) in [
            ("email.send", "email", cfg!(feature = "email")),
            ("image.thumbnail", "image", cfg!(feature = "image")),
            (FileDigest::NAME, "", true),
        ] {
            let expected = format!("build forebay-handlers with feature `{feature}`");
            match is_compiled_in(name) {
                Ok(()) => assert!(compiled_in, "{name}"),
                Err(wrong) => {
                    assert!(!compiled_in, "{name}");
                    assert_eq!(wrong.remedy, expected);
                }
            }
        }
    }
}
