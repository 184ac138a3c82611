//! `forebay delays`: what it shows of the ladder, that its command mends it, and that it takes
//! nothing.

use std::time::Duration;

use forebay_producer::testing::{self, Broker};
use lapin::options::{
    BasicConsumeOptions, ExchangeDeleteOptions, ExchangeUnbindOptions, QueueDeleteOptions,
};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties};
use serde_json::{Value, json};
use tokio::time::{self, Instant};

use super::{broker, forebay, ready};

async fn ls(broker: &Broker) -> Value {
    forebay(broker, &["delays", "ls"]).json().await
}

fn states(seen: &Value) -> Vec<&str> {
    let levels = seen["levels"].as_array().expect("a list");
    levels.iter().map(|level| level["state"].as_str().expect("a word")).collect()
}

async fn publish_later(broker: &Broker, delay: &str) {
    forebay(broker, &["publish", "a.b", "{}", "--delay", delay]).succeed().await;
}

async fn channel(broker: &Broker) -> Channel {
    let connection = Connection::connect(broker.url(), ConnectionProperties::default()).await;
    connection.expect("connected").create_channel().await.expect("a channel")
}

async fn delete_exchange(broker: &Broker, exchange: &str) {
    let options = ExchangeDeleteOptions::default();
    channel(broker).await.exchange_delete(exchange.into(), options).await.expect("deleted");
}

/// Carries out the command that the last look named.
async fn mend(broker: &Broker, seen: &Value) {
    let command = seen["mend"].as_str().unwrap_or_else(|| panic!("nothing to mend: {seen:#}"));
    let arguments: Vec<_> = command.split(' ').skip(1).collect();
    forebay(broker, &arguments).succeed().await;
}

#[tokio::test]
async fn nothing_was_delayed_yet() {
    let broker = broker().await;
    let table = forebay(&broker, &["delays", "ls"]).succeed().await.out;
    assert!(table.contains("nothing was delayed yet"), "{table}");
    let seen = ls(&broker).await;
    assert_eq!((&seen["levels"], &seen["waiting"]), (&json!([]), &json!(0)));
}

#[tokio::test]
async fn each_level_has_a_line_and_looking_takes_nothing() {
    let broker = broker().await;
    for delay in ["3.2s", "26s", "26s"] {
        publish_later(&broker, delay).await;
    }
    let seen = ls(&broker).await;
    assert_eq!(states(&seen), ["ok"; 9]);
    let top = &seen["levels"][8];
    assert_eq!((&top["holds_ms"], &top["less_than_ms"]), (&json!(25_600), &json!(51_200)));
    assert_eq!(
        (&top["waiting"], &seen["due"], &seen["mend"]),
        (&json!(2), &Value::Null, &Value::Null)
    );
    let table = forebay(&broker, &["delays", "ls"]).succeed().await.out;
    assert!(table.starts_with("level  holds  waiting  left     state\n"), "{table}");
    assert!(table.contains("\n    8  25.6s        2  < 51.2s  ok\n"), "{table}");
    assert!(table.contains("; 9 levels for delays of less than 51.2s\n"), "{table}");
    // Both are still there, and the other one goes its way.
    assert_eq!(ls(&broker).await["levels"][8]["waiting"], 2);
    let until = Instant::now() + Duration::from_secs(60);
    while ready(&broker, "default").await != 1 {
        assert!(Instant::now() < until, "{:#}", ls(&broker).await);
        time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_missing_exchange_holds_up_the_levels_above_it_and_is_mended() {
    let broker = broker().await;
    let topology = broker.config().topology().clone();
    publish_later(&broker, "26s").await;
    delete_exchange(&broker, &topology.delay(6)).await;
    let seen = ls(&broker).await;
    assert_eq!(states(&seen)[5..], ["ok", "exchange missing", "held up", "held up"]);
    assert_eq!(seen["mend"], "forebay topology apply --delays 25600ms");
    let table = forebay(&broker, &["delays", "ls"]).succeed().await.out;
    assert!(table.contains("level 6: its exchange is not there"), "{table}");
    assert!(table.contains("mend: forebay topology apply --delays 25600ms\n"), "{table}");
    mend(&broker, &seen).await;
    assert_eq!(states(&ls(&broker).await), ["ok"; 9]);
}

#[tokio::test]
async fn a_missing_queue_and_a_missing_end_are_mended() {
    let broker = broker().await;
    let topology = broker.config().topology().clone();
    publish_later(&broker, "1s").await;
    let options = QueueDeleteOptions::default();
    let deleted = channel(&broker).await;
    deleted.queue_delete(topology.delay(0).as_str().into(), options).await.expect("deleted");
    delete_exchange(&broker, &topology.deliver_exchange()).await;
    let seen = ls(&broker).await;
    assert_eq!(states(&seen), ["queue missing", "held up", "held up", "held up"]);
    assert!(seen["faults"].to_string().contains("behind the lowest level"), "{seen:#}");
    assert_eq!(seen["mend"], "forebay topology apply --queue default --delays 800ms");
    mend(&broker, &seen).await;
    assert_eq!(states(&ls(&broker).await), ["ok"; 4]);
}

#[tokio::test]
async fn somebody_who_consumes_from_a_level_is_noticed() {
    let broker = broker().await;
    publish_later(&broker, "0.1s").await;
    let (level, thief) = (broker.config().topology().delay(0), channel(&broker).await);
    let options = BasicConsumeOptions::default();
    let consumes =
        thief.basic_consume(level.as_str().into(), "".into(), options, FieldTable::default());
    let _consumer = consumes.await.expect("consumed");
    let seen = ls(&broker).await;
    assert_eq!((states(&seen), &seen["mend"]), (vec!["consumed"], &Value::Null));
    assert!(seen["faults"].to_string().contains("before their time"), "{seen:#}");
}

#[tokio::test]
async fn the_management_api_tells_what_is_due_and_what_is_not_bound() {
    let own = testing::broker_of_its_own("").await;
    let broker = own.broker();
    let topology = broker.config().topology().clone();
    publish_later(&broker, "0.4s").await;
    let url = own.management_url();
    let with_api =
        async || forebay(&broker, &["delays", "ls", "--management-url", &url]).json().await;
    let until = async |what: &str, so: &dyn Fn(&Value) -> bool| {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let seen = with_api().await;
            if so(&seen) {
                return seen;
            }
            assert!(Instant::now() < deadline, "{what}: {seen:#}");
            time::sleep(Duration::from_millis(200)).await;
        }
    };
    until("all is well", &|seen| seen["due"] == 0 && states(seen) == ["ok"; 3]).await;

    // The exchange stays, what leads from it does not.
    let (from, to) = (topology.delay(1), topology.delay(0));
    let key = format!("{}0.#", "*.".repeat(26));
    let unbound = channel(&broker).await;
    let unbind = unbound.exchange_unbind(
        to.as_str().into(),
        from.as_str().into(),
        key.as_str().into(),
        ExchangeUnbindOptions::default(),
        FieldTable::default(),
    );
    unbind.await.expect("unbound");
    let later = ["publish", "a.b", "{}", "--delay", "0.4s", "--declare", "never"];
    forebay(&broker, &later).succeed().await;
    let held = |seen: &Value| seen["due"] == 1 && states(seen)[1] == "binding missing";
    let seen = until("the job is due", &held).await;
    // AMQP would count nothing.
    assert_eq!((&seen["waiting"], &seen["levels"][2]["due"]), (&json!(0), &json!(1)));
    assert_eq!(states(&seen), ["ok", "binding missing", "held up"]);
    let table = forebay(&broker, &["delays", "ls", "--management-url", &url]).succeed().await.out;
    assert!(table.starts_with("level  holds  waiting  due  left"), "{table}");
    assert!(table.contains("0 jobs waiting, 1 due"), "{table}");
    mend(&broker, &seen).await;
    until("it is bound again", &|seen| states(seen) == ["ok"; 3]).await;
}

#[tokio::test]
async fn a_management_api_that_does_not_answer_is_done_without() {
    let broker = broker().await;
    publish_later(&broker, "0.1s").await;
    let call = forebay(&broker, &["delays", "ls"]);
    let ran = call.env("FOREBAY_MANAGEMENT_URL", "http://guest:hush@127.0.0.1:1").succeed().await;
    assert!(ran.err.contains("127.0.0.1:1 cannot be asked"), "{}", ran.err);
    assert!(!ran.err.contains("hush"), "{}", ran.err);
    assert!(ran.out.contains("not counted without FOREBAY_MANAGEMENT_URL"), "{}", ran.out);
}
