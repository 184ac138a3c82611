//! A real Chromium without a window, told what to do over its DevTools protocol.

use std::path::PathBuf;
use std::process::Stdio;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::support::within;

const FLAGS: [&str; 10] = [
    "--headless",
    // Root has no other choice, and containers have little shared memory.
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    // Nothing but this machine.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
    "--remote-debugging-port=0",
];

/// One tab.
pub(crate) struct Browser {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    session: Option<String>,
    asked: u64,
    loaded: u64,
    /// What the page wrote to its console, for when a test fails.
    said: Vec<String>,
    _child: Child,
    _profile: TempDir,
}

impl Browser {
    pub(crate) async fn start() -> Self {
        let (program, profile) = (chromium(), TempDir::new().unwrap());
        let mut child = Command::new(&program)
            .args(FLAGS)
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {}: {error}", program.display()));
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut said = String::new();
        let address = loop {
            let line = within("the address of DevTools", lines.next_line()).await.unwrap();
            let line = line.unwrap_or_else(|| panic!("chromium ended: {said}"));
            match line.strip_prefix("DevTools listening on ") {
                Some(address) => break address.to_owned(),
                None => said = line,
            }
        };
        // It must not be stopped by a pipe that nobody reads.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let (socket, _) = tokio_tungstenite::connect_async(address).await.unwrap();
        let mut browser = Self {
            socket,
            session: None,
            asked: 0,
            loaded: 0,
            said: Vec::new(),
            _child: child,
            _profile: profile,
        };
        let tab = browser.ask("Target.createTarget", json!({ "url": "about:blank" })).await;
        let tab = json!({ "targetId": tab["targetId"], "flatten": true });
        let attached = browser.ask("Target.attachToTarget", tab).await;
        browser.session = Some(attached["sessionId"].as_str().unwrap().to_owned());
        for domain in ["Page.enable", "Runtime.enable", "Log.enable"] {
            browser.ask(domain, json!({})).await;
        }
        browser
    }

    /// Loads a page, and waits until it is there.
    pub(crate) async fn go(&mut self, address: &str) {
        self.load("Page.navigate", json!({ "url": address })).await;
    }

    pub(crate) async fn reload(&mut self) {
        self.load("Page.reload", json!({})).await;
    }

    async fn load(&mut self, method: &str, params: Value) {
        let before = self.loaded;
        let gone = self.ask(method, params).await;
        assert!(gone["errorText"].is_null(), "{method}: {gone}");
        while self.loaded == before {
            self.message("a page").await;
        }
    }

    /// What an expression is in the page; if it is a promise, what comes of it.
    pub(crate) async fn evaluate(&mut self, expression: &str) -> Value {
        let wish = json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let mut answer = self.ask("Runtime.evaluate", wish).await;
        let thrown = &answer["exceptionDetails"];
        assert!(thrown.is_null(), "{expression}: {}", thrown["exception"]["description"]);
        answer["result"]["value"].take()
    }

    /// Waits until an expression is true in the page.
    pub(crate) async fn until(&mut self, expression: &str) {
        let looking = format!(
            "new Promise((done) => (function look(more) {{
                if ({expression}) done(true); else if (!more) done(false);
                else setTimeout(look, 20, more - 1);
            }})(2_500))"
        );
        if self.evaluate(&looking).await != true {
            let shown = "JSON.stringify(window.seen ?? document.body.innerText)";
            let shown = self.evaluate(shown).await;
            panic!("not true: {expression}\nthe page: {shown}\nits console: {:#?}", self.said);
        }
    }

    async fn ask(&mut self, method: &str, params: Value) -> Value {
        self.asked += 1;
        let mut wish = json!({ "id": self.asked, "method": method, "params": params });
        if let Some(session) = &self.session {
            wish["sessionId"] = session.as_str().into();
        }
        self.socket.send(Message::text(wish.to_string())).await.unwrap();
        loop {
            let mut answer = self.message(method).await;
            if answer["id"] == self.asked {
                assert!(answer["error"].is_null(), "{method}: {}", answer["error"]);
                return answer["result"].take();
            }
        }
    }

    async fn message(&mut self, what: &str) -> Value {
        loop {
            match within(what, self.socket.next()).await {
                Some(Ok(Message::Text(text))) => {
                    let message: Value = serde_json::from_str(&text).unwrap();
                    match message["method"].as_str() {
                        Some("Page.loadEventFired") => self.loaded += 1,
                        Some("Log.entryAdded" | "Runtime.exceptionThrown") => {
                            self.said.push(message["params"].to_string());
                        }
                        _ => {}
                    }
                    return message;
                }
                Some(Ok(_)) => {}
                ended => panic!("chromium ended: {ended:?}"),
            }
        }
    }
}

fn chromium() -> PathBuf {
    if let Some(stated) = std::env::var_os("FOREBAY_CHROMIUM") {
        return stated.into();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<_> = std::env::split_paths(&path).collect();
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let mut programs = names.iter().flat_map(|name| folders.iter().map(move |at| at.join(name)));
    programs.find(|program| program.is_file()).expect(
        "chromium is not installed: apt-get install chromium, or say where one is with \
         FOREBAY_CHROMIUM",
    )
}
