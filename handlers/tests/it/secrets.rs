//! A manifest that asks for signed jobs, TLS and a password in a file.

use forebay_producer::testing::Authority;
use forebay_producer::{Config, Producer, PublishOptions, SigningKeys};
use serde_json::json;

use crate::support::{KIND, Run, Site, last_words};

const KEYS: &str = "one=0123456789abcdef0123456789abcdef";

#[tokio::test]
async fn a_worker_that_wants_signed_jobs_runs_no_others() {
    let manifest =
        format!("[worker]\nrequire_signatures = true\n[functions.\"{KIND}\"]\nexec = [\"true\"]\n");
    let site = Site::new(&manifest).await;
    let output = site.command(&["--check"]).env_remove("FOREBAY_SIGNING_KEYS").output().await;
    let output = output.unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("there is no key; set FOREBAY_SIGNING_KEYS_FILE"), "{text}");

    site.write("keys", &format!("{KEYS}\n"));
    let mut command = site.command(&[]);
    command.env("FOREBAY_SIGNING_KEYS_FILE", "keys");
    let run = Run::start(command);
    run.logged("it consumes", |line| line["message"] == "consuming").await;
    let config = site.broker.config().signing_keys(SigningKeys::parse(KEYS).unwrap());
    let signing = Producer::new(&config);
    signing.publish_raw(KIND, "{}", PublishOptions::new()).await.unwrap();
    run.says("/metrics", 200, "outcome=\"done\"} 1\n").await;
    site.publish(json!({})).await;
    let letter = site.dead().await;
    assert_eq!(letter.reason, "unsigned");
    assert!(last_words(&letter).contains("not signed"), "{}", last_words(&letter));
    let summary = run.drain().await;
    assert!(summary.contains("done 1") && summary.contains("dead 1"), "{summary}");
}

#[tokio::test]
async fn a_worker_takes_certificates_and_password_from_the_files_of_its_manifest() {
    let authority = Authority::new();
    let demands = "ssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = true";
    let own = authority.broker(&authority.issue("rabbit", &["127.0.0.1"]), demands, &[]).await;
    let manifest = format!(
        "[broker]\nurl = \"amqps://guest@{}/%2f\"\nca_file = \"ca.pem\"\n\
         cert_file = \"worker.pem\"\nkey_file = \"worker.key\"\npassword_file = \"password\"\n\
         [functions.\"{KIND}\"]\nexec = [\"true\"]\n",
        own.tls_address()
    );
    let site = Site::on(own.broker(), &manifest);
    own.ctl(&["change_password", "guest", "in-a-file"]).await;
    authority.issue("worker", &[]).write(site.folder.path(), "worker");
    site.write("ca.pem", authority.pem());
    site.write("password", "in-a-file\n");
    let mut command = site.command(&[]);
    command.env_remove("AMQP_URL");
    let run = Run::start(command);
    run.logged("it consumes", |line| line["message"] == "consuming").await;
    let url = own.url().replace("guest:guest", "guest:in-a-file");
    let config = Config::new(&url).unwrap().namespace(site.broker.namespace()).unwrap();
    Producer::new(&config).publish_raw(KIND, "{}", PublishOptions::new()).await.unwrap();
    run.says("/metrics", 200, "outcome=\"done\"} 1\n").await;
    let log = run.log();
    assert!(!format!("{log:?}").contains("in-a-file"), "{log:?}");
    run.drain().await;

    // A broken file ends it at once, with one line.
    site.write("worker.key", "");
    let mut command = site.command(&[]);
    let output = command.env_remove("AMQP_URL").output().await.unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("worker.key") && text.contains("no private key"), "{text}");
}
