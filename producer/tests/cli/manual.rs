//! `forebay man` and `forebay completions`: the manual, and what a shell needs.

use std::fs;
use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::somewhere;

const NOWHERE: &str = "amqp://127.0.0.1:1";

#[tokio::test]
async fn every_verb_has_a_page() {
    let directory = tempfile::tempdir().expect("a directory");
    let pages = directory.path().join("man1");
    let arguments = ["man", "--dir", pages.to_str().expect("UTF-8")];
    // A manifest that cannot be read does not keep anybody from the manual.
    let ran = somewhere(NOWHERE, &arguments).manifest("broken = [").succeed().await;
    assert!(ran.out.contains("pages written to"), "{}", ran.out);
    for (verb, parts) in [
        ("forebay", &["EXAMPLES", "EXIT STATUS", "ENVIRONMENT", "AMQP_URL", "FILES"][..]),
        ("forebay-publish", &["EXAMPLES", "EXIT STATUS", "MANY JOBS", "\\-\\-delay"]),
        ("forebay-delays-ls", &["EXAMPLES", "held up"]),
        ("forebay-dead-redrive", &["EXAMPLES", "SEE ALSO", "\\fBforebay\\-dead\\fR(1)"]),
        ("forebay-topology-apply", &["EXAMPLES", "NOTES"]),
    ] {
        let page = fs::read_to_string(pages.join(format!("{verb}.1"))).expect("a page");
        assert!(page.starts_with(&format!(".TH \"{verb}\" \"1\"")), "{page}");
        for part in parts {
            assert!(page.contains(part), "{verb} lacks {part}: {page}");
        }
    }
    let main = fs::read(pages.join("forebay.1")).expect("a page");
    let ran = somewhere(NOWHERE, &["man"]).succeed().await;
    assert_eq!(ran.out.as_bytes(), main);
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_is_named() {
    let call = somewhere(NOWHERE, &["man", "--dir", "taken/man1"]).file("taken", "");
    call.run().await.failed(2, &["taken/man1"]);
}

#[tokio::test]
async fn bash_completes_verbs_and_flags() {
    let script = somewhere(NOWHERE, &["completions", "bash"]).succeed().await.out;
    for (words, last, expected) in [
        ("forebay dead", "redr", "redrive"),
        ("forebay publish", "--del", "--delay"),
        ("forebay run", "--ch", "--check"),
        ("forebay", "comp", "completions"),
    ] {
        let words = format!("COMP_WORDS=({words} {last}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))");
        let ask = format!("{words}; _forebay forebay {last} ''; echo \"${{COMPREPLY[*]}}\"");
        let mut bash = Command::new("bash")
            .args(["--norc", "-s"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("bash is there");
        let mut stdin = bash.stdin.take().expect("stdin is a pipe");
        let input = format!("{script}\n{ask}\n");
        stdin.write_all(input.as_bytes()).await.expect("written");
        drop(stdin);
        let out = bash.wait_with_output().await.expect("bash ends").stdout;
        assert_eq!(String::from_utf8_lossy(&out).trim(), expected);
    }
}

#[tokio::test]
async fn an_unknown_shell_is_told_the_known_ones() {
    let ran = somewhere(NOWHERE, &["completions", "tcsh"]).run().await;
    ran.failed(2, &["tcsh", "bash", "zsh", "fish"]);
}
