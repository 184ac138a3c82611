//! `forebay run` and `forebay gateway`: worker and gateway are other programs.

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
    for (verb, program, package) in [
        ("run", "forebay-run", "forebay-handlers"),
        ("gateway", "forebay-gateway", "forebay-gateway"),
    ] {
        let ended = alone(directory.path(), &[verb, "--check"]).await;
        let err = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(2), "{err}");
        assert!(err.starts_with(&format!("error: {program} is not installed")), "{err}");
        assert!(err.contains(&format!("cargo install {package}")), "{err}");
    }
}

#[cfg(unix)]
#[tokio::test]
async fn a_program_beside_it_gets_arguments_settings_and_the_exit_code_is_its_own() {
    use std::os::unix::fs::PermissionsExt;

    let directory = tempfile::tempdir().expect("a directory");
    let script = "#!/bin/sh\necho \"$AMQP_URL $FOREBAY_NAMESPACE $FOREBAY_DECLARE\"\n\
                  for a; do echo \"[$a]\"; done\nexit 7\n";
    let ours = ["--url", "amqp://a", "--namespace", "shop", "--declare", "never"];
    // The manifest is none of the gateway's business.
    for (verb, program, manifest) in
        [("run", "forebay-run", "[--config]\n[my jobs.toml]\n"), ("gateway", "forebay-gateway", "")]
    {
        let program = directory.path().join(program);
        fs::write(&program, script).expect("a script");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("executable");
        let theirs = ["--config", "my jobs.toml", verb, "--help", "--timeout", "x"];
        let ended = alone(directory.path(), &[&ours[..], &theirs[..]].concat()).await;
        let out = String::from_utf8_lossy(&ended.stdout).into_owned();
        let expected = format!("amqp://a shop never\n{manifest}[--help]\n[--timeout]\n[x]\n");
        assert_eq!((ended.status.code(), out), (Some(7), expected));
    }
}
