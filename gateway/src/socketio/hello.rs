//! What a client that polls is told first.
//! In: the library's first answer. Out: the session's id, and the answer as the client gets it. Pure.

use serde_json::{Map, Value};
use socketioxide::socket::Sid;

/// The client learns how much it may send at once, which is not how much the library sends at once.
/// None: that is no such answer.
pub(super) fn read(answer: &[u8], most: usize) -> Option<(Sid, String)> {
    let mut hello: Map<String, Value> = serde_json::from_slice(answer.strip_prefix(b"0")?).ok()?;
    let sid = hello.get("sid")?.as_str()?.parse().ok()?;
    hello.insert("maxPayload".to_owned(), most.into());
    Some((sid, format!("0{}", Value::Object(hello))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_told_what_it_may_send_and_the_rest_as_it_is() {
        let sid = Sid::new();
        let answer = format!(r#"0{{"sid":"{sid}","upgrades":["websocket"],"maxPayload":9999}}"#);
        let (read, told) = read(answer.as_bytes(), 10).unwrap();
        assert_eq!(read, sid);
        let told: Value = serde_json::from_str(told.strip_prefix('0').unwrap()).unwrap();
        let expected = serde_json::json!({
            "sid": sid.to_string(), "upgrades": ["websocket"], "maxPayload": 10,
        });
        assert_eq!(told, expected);
        for wrong in ["", "0", "0{}", r#"{"code":"1"}"#, r#"0{"sid":7}"#] {
            assert!(super::read(wrong.as_bytes(), 10).is_none(), "{wrong}");
        }
    }
}
