//! What can be asked over HTTP, for programs: OpenAPI.
//! In: the settings. Out: `http/openapi.json`, with what this gateway takes filled in.

use serde_json::{Value, json};

use crate::settings::Settings;

const OPENAPI: &str = include_str!("http/openapi.json");

/// The description as text.
pub(crate) fn of(settings: &Settings) -> String {
    let mut openapi: Value = serde_json::from_str(OPENAPI).expect("it is JSON");
    let options = &mut openapi["components"]["schemas"]["Publish"]["properties"]["options"];
    let options = &mut options["properties"];
    let mut queues: Vec<_> = settings.publish.queues.iter().cloned().map(Value::from).collect();
    queues.push(Value::Null);
    options["queue"]["enum"] = queues.into();
    let longest = u64::try_from(settings.publish.max_delay.as_millis()).unwrap_or(u64::MAX);
    options["delay_ms"]["maximum"] = longest.into();
    if settings.anonymous.is_some() {
        may_be_left_out(&mut openapi["security"]);
        may_be_left_out(&mut openapi["paths"]["/events"]["get"]["security"]);
    }
    openapi.to_string()
}

/// An empty one among them means that nothing need be shown.
fn may_be_left_out(security: &mut Value) {
    security.as_array_mut().expect("it is a list").push(json!({}));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_this_gateway_takes() {
        let text = "[anonymous]\n[publish]\nqueues = [\"mail\"]\nmax_delay = \"1s\"";
        let described = of(&Settings::parse(text, "gateway.toml").unwrap());
        let openapi: Value = serde_json::from_str(&described).unwrap();
        let found = |at: &str| openapi.pointer(at).cloned().unwrap_or_default();
        let options = "/components/schemas/Publish/properties/options/properties";
        assert_eq!(found(&format!("{options}/queue/enum")), json!(["mail", null]));
        assert_eq!(found(&format!("{options}/delay_ms/maximum")), 1_000);
        assert_eq!(found("/security"), json!([{ "token": [] }, {}]));
        let closed = of(&Settings::default());
        assert!(!closed.contains("[{\"token\":[]},{}]"), "{closed}");
    }
}
