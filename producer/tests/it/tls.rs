//! Encrypted connections: whom we trust, who trusts us, and what is said when it does not fit.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use forebay_producer::testing::{Authority, Issued, OwnBroker};
use forebay_producer::{Config, ConnectError, Producer};
use tempfile::TempDir;

use crate::support::{note, place_for_a_broker, within};

/// A broker with TLS, an issuer that both sides know, and files.
struct Site {
    authority: Authority,
    own: OwnBroker,
    folder: TempDir,
    _place: tokio::sync::SemaphorePermit<'static>,
}

const DEMANDS: &str = "ssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = true";

impl Site {
    async fn start(settings: &str, plugins: &[&str]) -> Self {
        let authority = Authority::new();
        let certificate = authority.issue("broker", &["localhost", "127.0.0.1"]);
        Self::with(authority, &certificate, settings, plugins).await
    }

    async fn with(
        authority: Authority,
        certificate: &Issued,
        settings: &str,
        plugins: &[&str],
    ) -> Self {
        let place = place_for_a_broker().await;
        let own = authority.broker(certificate, settings, plugins).await;
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("ca.pem"), authority.pem()).unwrap();
        Self { authority, own, folder, _place: place }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn url(&self) -> String {
        format!("amqps://guest:guest@{}/%2f", self.own.tls_address())
    }

    /// Trusting the broker, at this URL.
    fn at(&self, url: &str) -> Config {
        // Long: whoever waits for it has not understood that waiting is in vain.
        let patience = Duration::from_secs(3_600);
        Config::new(url).unwrap().ca_file(self.file("ca.pem")).access_patience(patience)
    }

    /// With this certificate of ours as well.
    fn with_certificate(&self, name: &str, issued: &Issued) -> Config {
        let (cert, key) = issued.write(self.folder.path(), name);
        self.at(&self.url()).client_certificate(cert, key)
    }
}

async fn publishes(config: &Config) {
    let producer = within("a connection", Producer::connect(config)).await.unwrap();
    within("a confirm", producer.publish(&note(1))).await.unwrap();
    producer.close().await;
}

/// What a connect ends with that waiting does not mend. It ends by itself: the deadline is far away.
async fn refused(config: &Config) -> String {
    let config = config.clone().publish_deadline(Duration::from_secs(3_600));
    let error = within("an error", Producer::connect(&config)).await.unwrap_err();
    assert!(matches!(error, ConnectError::Setup { .. }), "{error}");
    let words = error.to_string();
    assert!(!words.contains('\n'), "{words}");
    words
}

#[tokio::test]
async fn a_broker_whose_issuer_is_named_is_trusted_and_no_other() {
    let site = Site::start("", &[]).await;
    publishes(&site.at(&site.url())).await;

    let refusal = refused(&Config::new(&site.url()).unwrap()).await;
    assert!(refusal.contains("issuer is not trusted") && refusal.contains("AMQP_CA_FILE"));
    let other = site.file("other-ca.pem");
    fs::write(&other, Authority::new().pem()).unwrap();
    let refusal = refused(&site.at(&site.url()).ca_file(&other)).await;
    assert!(refusal.contains("issuer is not trusted") && refusal.contains("other-ca.pem"));

    // One host of several that cannot be trusted is none that answers, and no reason to give up.
    let both = site.url().replace("127.0.0.1", "127.0.0.1:1,127.0.0.1");
    publishes(&site.at(&both)).await;
}

#[tokio::test]
async fn a_broker_with_another_name_is_not_trusted() {
    let authority = Authority::new();
    let certificate = authority.issue("broker", &["rabbit.example.org"]);
    let site = Site::with(authority, &certificate, "", &[]).await;
    let refusal = refused(&site.at(&site.url())).await;
    for word in ["127.0.0.1", "rabbit.example.org", "AMQP_URL"] {
        assert!(refusal.contains(word), "{refusal}");
    }
}

#[tokio::test]
async fn a_broker_with_an_expired_certificate_is_not_trusted() {
    let authority = Authority::new();
    let certificate = authority.issue_expired("broker", &["127.0.0.1"]);
    let site = Site::with(authority, &certificate, "", &[]).await;
    let refusal = refused(&site.at(&site.url())).await;
    assert!(refusal.contains("has expired") && refusal.contains("renewed"), "{refusal}");
}

#[tokio::test]
async fn a_broker_that_wants_a_certificate_gets_ours_and_says_what_is_wrong_with_it() {
    for versions in ["", "ssl_options.versions.1 = tlsv1.2"] {
        let site = Site::start(&format!("{DEMANDS}\n{versions}"), &[]).await;
        let ours = site.authority.issue("worker", &[]);
        publishes(&site.with_certificate("ours", &ours)).await;

        let none = refused(&site.at(&site.url())).await;
        assert!(none.contains("wants a certificate") && none.contains("AMQP_CERT_FILE"), "{none}");
        let expired = site.authority.issue_expired("worker", &[]);
        let expired = refused(&site.with_certificate("expired", &expired)).await;
        assert!(expired.contains("expired.pem") && expired.contains("not accept"), "{expired}");
        let stranger = Authority::new().issue("worker", &[]);
        let stranger = refused(&site.with_certificate("stranger", &stranger)).await;
        assert!(stranger.contains("stranger.pem") && stranger.contains("issued by"), "{stranger}");
    }
}

#[tokio::test]
async fn what_cannot_be_read_here_is_told_with_its_file_and_at_once() {
    // Nobody is asked: there is no broker.
    let folder = TempDir::new().unwrap();
    let authority = Authority::new();
    let (cert, key) = authority.issue("one", &[]).write(folder.path(), "one");
    let (_, other_key) = authority.issue("two", &[]).write(folder.path(), "two");
    let nowhere = folder.path().join("nowhere");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at =
        |scheme| Config::new(&format!("{scheme}://{}", listener.local_addr().unwrap())).unwrap();
    for (config, words) in [
        (at("amqps").ca_file(&nowhere), ["nowhere", "AMQP_CA_FILE"]),
        (at("amqps").client_certificate(&cert, &nowhere), ["nowhere", "AMQP_KEY_FILE"]),
        (at("amqps").client_certificate(&cert, &other_key), ["two.key", "does not belong"]),
        (at("amqps").client_certificate(&key, &key), ["one.key", "no certificate"]),
        (at("amqps").password_file(&nowhere), ["nowhere", "AMQP_PASSWORD_FILE"]),
        (at("amqp").ca_file(&cert), ["amqps://", "without TLS"]),
    ] {
        let refusal = refused(&config).await;
        assert!(words.iter().all(|word| refusal.contains(word)), "{refusal}");
    }
    let external = Config::new("amqps://127.0.0.1:1?auth_mechanism=external").unwrap();
    assert!(refused(&external).await.contains("AMQP_CERT_FILE"));
}

#[tokio::test]
async fn tls_where_there_is_none_and_none_where_there_is_tls_are_told() {
    let site = Site::start("", &[]).await;
    let none = refused(&site.at(&site.own.url().replace("amqp://", "amqps://"))).await;
    assert!(none.contains("does not speak TLS") && none.contains("amqp://"), "{none}");
    let plain = Config::new(&site.url().replace("amqps://", "amqp://")).unwrap();
    let wanted = refused(&plain).await;
    assert!(wanted.contains("wants TLS") && wanted.contains("amqps://"), "{wanted}");
}

#[tokio::test]
async fn a_user_is_who_the_certificate_says() {
    let settings = format!(
        "{DEMANDS}\nauth_mechanisms.1 = EXTERNAL\nauth_mechanisms.2 = PLAIN\n\
         ssl_cert_login_from = common_name"
    );
    let site = Site::start(&settings, &["rabbitmq_auth_mechanism_ssl"]).await;
    site.own.ctl(&["add_user", "mailer", "never-used"]).await;
    site.own.ctl(&["set_permissions", "mailer", ".*", ".*", ".*"]).await;
    let url = format!("amqps://{}/%2f?auth_mechanism=external", site.own.tls_address());
    let by = |name: &str| {
        let issued = site.authority.issue(name, &[]);
        let (cert, key) = issued.write(site.folder.path(), name);
        site.at(&url).client_certificate(cert, key)
    };
    let producer = within("a connection", Producer::connect(&by("mailer"))).await.unwrap();
    within("a confirm", producer.publish(&note(1))).await.unwrap();
    let users = site.own.ctl(&["-q", "list_connections", "user", "auth_mechanism"]).await;
    assert!(users.contains("mailer\tEXTERNAL"), "{users}");
    producer.close().await;

    let nobody = by("nobody").access_patience(Duration::ZERO);
    let refusal = refused(&nobody).await;
    assert!(refusal.contains("rabbitmq_auth_mechanism_ssl"), "{refusal}");
}

#[tokio::test]
async fn renewed_certificates_and_passwords_are_read_at_the_next_connect() {
    let site = Site::start(DEMANDS, &[]).await;
    let (cert, key) = site.authority.issue("old", &[]).write(site.folder.path(), "ours");
    let password = site.file("password");
    fs::write(&password, "guest\n").unwrap();
    let url = site.url().replace("guest:guest", "guest:wrong");
    let config = site.at(&url).client_certificate(cert, key).password_file(&password);
    let producer = within("a connection", Producer::connect(&config)).await.unwrap();
    within("a confirm", producer.publish(&note(1))).await.unwrap();
    let subjects = async || site.own.ctl(&["-q", "list_connections", "peer_cert_subject"]).await;
    assert!(subjects().await.contains("CN=old"));

    site.authority.issue("new", &[]).write(site.folder.path(), "ours");
    fs::write(&password, "renewed\n").unwrap();
    site.own.ctl(&["change_password", "guest", "renewed"]).await;
    site.own.ctl(&["close_all_connections", "rotation"]).await;
    within("a confirm", producer.publish(&note(2))).await.unwrap();
    let subjects = subjects().await;
    assert!(subjects.contains("CN=new") && !subjects.contains("CN=old"), "{subjects}");
    producer.close().await;
}

#[tokio::test]
async fn a_file_that_is_broken_for_a_while_is_waited_for_by_who_was_connected() {
    let site = Site::start("", &[]).await;
    let producer = Producer::connect(&site.at(&site.url())).await.unwrap();
    within("a confirm", producer.publish(&note(1))).await.unwrap();
    let whole = fs::read(site.file("ca.pem")).unwrap();
    fs::write(site.file("ca.pem"), "").unwrap();
    site.own.ctl(&["close_all_connections", "rotation"]).await;
    let publishing = note(2);
    let mut publish = std::pin::pin!(producer.publish(&publishing));
    let trouble = async {
        while !producer.link().trouble().contains("ca.pem") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        confirmed = &mut publish => panic!("{confirmed:?} without a connection"),
        () = within("trouble", trouble) => {}
    }
    fs::write(site.file("ca.pem"), whole).unwrap();
    within("a confirm", publish).await.unwrap();
    producer.close().await;
}
