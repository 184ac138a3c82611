//! Pages in a real Chromium, and what they are served.

use std::path::Path;

use axum::Router;
use axum::response::Html;
use axum::routing::get;
use forebay_producer::EventKind;
use forebay_producer::testing::Proxy;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::browser::Browser;
use crate::support::{Open, Stage, anonymous, client, open_with, token};

const CLIENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/socketio");

/// A gateway that pages may use without a token.
async fn open_for_pages() -> Open {
    open_with(|settings| {
        settings.anonymous = Some(anonymous(&["*"], &["channel:news"]));
        settings.page = true;
    })
    .await
}

/// The next gateway at the same address.
async fn again_after(first: &Open) -> Open {
    let (address, namespace) = (first.address.clone(), first.broker.namespace().to_owned());
    open_with(|settings| {
        settings.anonymous = Some(anonymous(&["*"], &["channel:news"]));
        settings.page = true;
        settings.listen = address;
        settings.broker.namespace = Some(namespace);
    })
    .await
}

/// A server of somebody's own page, at an origin that is not the gateway's.
async fn site() -> String {
    let script = Path::new(CLIENTS).join("node_modules/socket.io-client/dist/socket.io.min.js");
    let script = std::fs::read_to_string(script).expect(
        "socket.io-client is not installed: npm ci --ignore-scripts --prefix gateway/tests/socketio",
    );
    let page = Html(include_str!("../socketio/page.html"));
    let routes = Router::new()
        .route("/", get(async move || page))
        .route("/socket.io.js", get(async move || ([("content-type", "text/javascript")], script)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, routes).await });
    format!("http://{address}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_loses_its_connections_gets_everything_once_over_every_transport() {
    let mut first = open_for_pages().await;
    first.tell_and_see("news", 0).await;
    let path = Proxy::to(&first.address).await;
    let ada = token("ada", &json!({ "read": ["channel:news"] }));
    let mut browser = Browser::start().await;
    let (site, gateway) = (site().await, path.address());
    browser.go(&format!("{site}/?gateway=http://{gateway}&token={ada}")).await;
    browser.until("Object.keys(joined).length === 5").await;
    let everybody_has = |many: u64| format!("Object.values(seen).every((n) => n.length >= {many})");

    for n in 1..=10 {
        first.tell("news", n).await;
    }
    browser.until(&everybody_has(10)).await;
    // The network breaks amid events.
    for n in 11..=40 {
        first.tell("news", n).await;
        if n % 10 == 0 {
            path.cut();
        }
    }
    browser.until(&everybody_has(40)).await;
    // The gateway ends, and what happens meanwhile is there when the next one is.
    assert!(first.close().await);
    for n in 41..=60 {
        first.tell("news", n).await;
    }
    let _second = again_after(&first).await;
    browser.until(&everybody_has(60)).await;
    first.tell("news", 61).await;
    browser.until(&everybody_has(61)).await;

    let all: Vec<u64> = (1..=61).collect();
    for (who, seen) in browser.evaluate("seen").await.as_object().unwrap() {
        assert_eq!(*seen, json!(all), "{who}");
    }
    assert_eq!(browser.evaluate("gaps").await, json!([]));
    let joined = browser.evaluate("joined").await;
    assert!(joined.as_object().unwrap().values().all(|n| n.as_u64() > Some(1)), "{joined}");
}

/// The words of the page's list of events, oldest first, without what it tells of itself.
async fn listed(browser: &mut Browser) -> Vec<String> {
    let rows = "[...document.querySelectorAll('#events li')].filter((row) => row.children[2])
        .map((row) => row.children[2].textContent.trim()).reverse()";
    serde_json::from_value(browser.evaluate(rows).await).unwrap()
}

const PUBLISH: &str = "document.querySelector('#publish').requestSubmit()";

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_each_event_of_its_jobs_through_reloads_and_gateways() {
    let mut first = open_for_pages().await;
    let (stage, page) = (Stage::of(&first), first.http("/?kind=report.render"));
    let mut browser = Browser::start().await;
    browser.go(&page).await;
    browser.until("document.querySelector('#state').textContent === 'connected'").await;
    browser.evaluate(PUBLISH).await;
    browser.until("document.querySelector('#jobs li.queued')").await;
    let job = browser.evaluate("document.querySelector('#jobs li').id.slice(4)").await;
    let job = job.as_str().unwrap();
    let happened = async |what: EventKind, data: Value| {
        stage.happened_with(what, job, "report.render", Some("anonymous"), &data).await;
    };
    happened(EventKind::Started, json!({})).await;
    happened(EventKind::Progress, json!(25)).await;
    browser.until("document.querySelector('#jobs progress').value === 25").await;

    // The gateway ends, and a job is asked for that it cannot take any more.
    assert!(first.close().await);
    browser.until("document.querySelector('#state').dataset.is === 'connecting'").await;
    happened(EventKind::Progress, json!(50)).await;
    browser.evaluate(PUBLISH).await;
    let mut second = again_after(&first).await;
    browser.until("document.querySelector('#jobs progress').value === 0").await;
    browser.until("document.querySelectorAll('#jobs progress')[1].value === 50").await;

    // It is closed, and opened again.
    browser.go("about:blank").await;
    happened(EventKind::Succeeded, json!({ "result": "<img src=x onerror='hit = 1'>" })).await;
    browser.go(&page).await;
    browser.until("document.querySelector('#jobs li.succeeded')").await;
    let queued = "[...document.querySelectorAll('#events li')]
        .filter((row) => row.children[2]?.textContent.trim() === 'queued').length === 2";
    browser.until(queued).await;
    browser.reload().await;
    browser.until("document.querySelector('#state').textContent === 'connected'").await;
    let mut words = listed(&mut browser).await;
    // That of the second job may stand anywhere after it was asked for.
    let other = words.iter().rposition(|word| word == "queued").unwrap();
    assert!(other >= 3, "{words:?}");
    words.remove(other);
    let done = "succeeded {\"result\":\"<img src=x onerror='hit = 1'>\"}";
    assert_eq!(words, ["queued", "started", "progress 25", "progress 50", done]);
    assert_eq!(browser.evaluate("document.images.length + (window.hit ?? 0)").await, 0);
    assert!(second.close().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_is_there_when_it_is_asked_for_and_may_run_nothing_else() {
    let without = open_with(|settings| settings.anonymous = Some(anonymous(&[], &[]))).await;
    assert_eq!(client().get(without.http("/")).send().await.unwrap().status(), 404);
    let open = open_for_pages().await;
    let page = client().get(open.http("/")).send().await.unwrap();
    let policy = page.headers()["content-security-policy"].to_str().unwrap().to_owned();
    for part in ["default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'"] {
        assert!(policy.contains(part) && !policy.contains("unsafe"), "{policy}");
    }
    assert_eq!(page.headers()["content-type"], "text/html; charset=utf-8");

    let mut browser = Browser::start().await;
    browser.go(&open.http("/?kind=a")).await;
    browser.until("document.querySelector('#publish').elements.kind.value === 'a'").await;
    let styled = "getComputedStyle(document.querySelector('header')).display";
    assert_eq!(browser.evaluate(styled).await, "flex");
    let foreign = "new Promise((done) => {
        addEventListener('securitypolicyviolation', (no) => done(no.effectiveDirective));
        document.body.append(Object.assign(document.createElement('script'), { text: 'hit = 1' }));
    })";
    assert_eq!(browser.evaluate(foreign).await, "script-src-elem");
    assert_eq!(browser.evaluate("window.hit ?? 0").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_says_why_it_may_not_and_takes_a_token() {
    let open = open_with(|settings| settings.page = true).await;
    let mut browser = Browser::start().await;
    browser.go(&open.http("/")).await;
    browser.until("document.querySelector('#state').dataset.is === 'refused'").await;
    let why = browser.evaluate("document.querySelector('#state').textContent").await;
    assert!(why.as_str().unwrap().starts_with("no token was shown; enter"), "{why}");
    let ada = token("ada", &json!({ "publish": ["report.*"] }));
    let enter = format!(
        "document.querySelector('#token').elements.token.value = '{ada}';
         document.querySelector('#token').requestSubmit()"
    );
    browser.evaluate(&enter).await;
    browser.until("document.querySelector('#state').textContent === 'connected'").await;
    browser.evaluate(PUBLISH).await;
    browser.until("document.querySelector('#jobs li.queued')").await;
}
