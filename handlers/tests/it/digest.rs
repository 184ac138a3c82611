//! The built-in `file.digest`.

use serde_json::json;

use crate::support::{Site, last_words};

const MANIFEST: &str = "use = \"file.digest\"\nroots = [\"files\"]";

#[tokio::test]
async fn a_file_inside_the_roots_is_digested() {
    let site = Site::with(MANIFEST).await;
    std::fs::create_dir(site.file("files")).unwrap();
    site.write("files/abc", "abc");
    let run = site.run().await;
    let path = site.file("files/abc");
    let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let result = site.call(json!({ "path": path })).await.unwrap();
    assert_eq!(result, json!({ "path": path, "sha256": sha256, "bytes": 3 }));
    run.drain().await;
}

#[tokio::test]
async fn a_file_outside_the_roots_makes_a_dead_letter() {
    let site = Site::with(MANIFEST).await;
    std::fs::create_dir(site.file("files")).unwrap();
    site.write("secret", "secret");
    let run = site.run().await;
    site.publish(json!({ "path": site.file("files/../secret") })).await;
    let letter = site.dead().await;
    assert_eq!(letter.reason, "rejected");
    assert!(last_words(&letter).contains("is outside the folders"), "{letter:?}");
    run.drain().await;
}
