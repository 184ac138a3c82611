//! `forebay run`: the worker is another program.

use std::fs;
use std::path::Path;
use std::process::Output;

use tokio::process::Command;

/// A copy of the binary, alone in a directory that is all there is on PATH.
async fn alone(directory: &Path, arguments: &[&str]) -> Output {
    let copy = directory.join("forebay");
    if !copy.exists() {
        fs::copy(env!("CARGO_BIN_EXE_forebay"), &copy).expect("a copy");
    }
    let mut command = Command::new(copy);
    command.args(arguments).env("PATH", directory).env_remove("AMQP_URL");
    command.output().await.expect("forebay runs")
}

#[tokio::test]
async fn a_program_that_is_not_installed_is_named_with_the_command_that_installs_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let ended = alone(directory.path(), &["run", "--check"]).await;
    let err = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(2), "{err}");
    assert!(err.starts_with("error: forebay-run is not installed"), "{err}");
    assert!(err.contains("cargo install forebay-handlers"), "{err}");
}

#[cfg(unix)]
#[tokio::test]
async fn a_program_beside_it_gets_arguments_settings_and_the_exit_code_is_its_own() {
    use std::os::unix::fs::PermissionsExt;

    let directory = tempfile::tempdir().expect("a directory");
    let program = directory.path().join("forebay-run");
    let script =
        "#!/bin/sh\necho \"$AMQP_URL $FOREBAY_NAMESPACE\"\nfor a; do echo \"[$a]\"; done\nexit 7\n";
    fs::write(&program, script).expect("a script");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("executable");
    let arguments = [
        "--url",
        "amqp://a",
        "--namespace",
        "shop",
        "--config",
        "my jobs.toml",
        "run",
        "--help",
        "--timeout",
        "x",
    ];
    let ended = alone(directory.path(), &arguments).await;
    let out = String::from_utf8_lossy(&ended.stdout).into_owned();
    let expected = "amqp://a shop\n[--config]\n[my jobs.toml]\n[--help]\n[--timeout]\n[x]\n";
    assert_eq!((ended.status.code(), out.as_str()), (Some(7), expected));
}
