//! `forebay queues`.

use serde_json::{Value, json};

use super::{broker, forebay};

#[tokio::test]
async fn a_queue_that_is_not_there_is_told_from_an_empty_one() {
    let broker = broker().await;
    forebay(&broker, &["publish", "a.b", "{}"]).succeed().await;
    let seen = forebay(&broker, &["queues", "--queue", "default", "--queue", "other"]);
    let seen = seen.json().await;
    assert_eq!(
        (&seen["queues"][0]["exists"], &seen["queues"][0]["dead"]),
        (&json!(true), &json!(0))
    );
    assert_eq!(
        (&seen["queues"][1]["exists"], &seen["queues"][1]["ready"]),
        (&json!(false), &Value::Null)
    );
    let table = forebay(&broker, &["queues", "--queue", "other"]).succeed().await.out;
    assert!(table.contains("queue `other` is not on the broker"), "{table}");
}

#[tokio::test]
async fn the_output_says_where_the_names_come_from() {
    let broker = broker().await;
    let named = forebay(&broker, &["queues", "--queue", "mail"]).succeed().await.out;
    assert!(named.ends_with("queues from --queue\n"), "{named}");
    let guessed = forebay(&broker, &["queues"]).succeed().await.out;
    assert!(guessed.contains("no queue but `default` is known"), "{guessed}");
}

#[tokio::test]
async fn a_management_api_that_does_not_answer_is_done_without() {
    let broker = broker().await;
    let call = forebay(&broker, &["queues"]);
    let call = call.env("FOREBAY_MANAGEMENT_URL", "http://guest:hush@127.0.0.1:1");
    let ran = call.succeed().await;
    assert!(ran.err.contains("127.0.0.1:1 cannot be asked"), "{}", ran.err);
    assert!(!ran.err.contains("hush"), "{}", ran.err);
}
