//! Remembers which compiler builds this, for `forebay bench`.

use std::env;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let compiler = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let asked = Command::new(compiler).arg("--version").output();
    let version = asked.ok().and_then(|answer| String::from_utf8(answer.stdout).ok());
    println!("cargo::rustc-env=FOREBAY_RUSTC={}", version.as_deref().unwrap_or("rustc").trim());
}
