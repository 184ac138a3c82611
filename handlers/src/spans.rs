//! Spans over OTLP (feature `otel`): who gets them, by OpenTelemetry's own variables.
//! In: the environment. Out: a layer for the log's subscriber, and a flush at the end; without the
//! feature, a word about how to get it.

#[cfg(feature = "otel")]
mod otlp;

#[cfg(feature = "otel")]
use tracing::info;
use tracing::warn;

use crate::logs::AnyLayer;

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const TRACES_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";

/// What is exported, and what is to be said about it.
pub(crate) struct Spans {
    layer: Option<AnyLayer>,
    news: News,
    #[cfg(feature = "otel")]
    export: Option<otlp::Export>,
}

/// Said once there is a log.
#[derive(Debug, PartialEq, Eq)]
enum News {
    None,
    #[cfg(feature = "otel")]
    Exported {
        endpoint: String,
    },
    NotExported {
        why: String,
    },
}

impl Spans {
    /// No spans.
    pub(crate) fn none() -> Self {
        Self::silent(News::None)
    }

    /// Spans, if the environment names an endpoint. What is wrong with it stops nobody's jobs.
    pub(crate) fn begin() -> Self {
        match endpoint(|name| std::env::var(name).ok()) {
            None => Self::none(),
            Some(endpoint) => Self::to(&endpoint),
        }
    }

    #[cfg(feature = "otel")]
    fn to(endpoint: &str) -> Self {
        match otlp::Export::begin(endpoint) {
            Ok((export, layer)) => {
                let news = News::Exported { endpoint: export.endpoint().to_owned() };
                Self { layer: Some(layer), news, export: Some(export) }
            }
            Err(why) => Self::silent(News::NotExported { why }),
        }
    }

    #[cfg(not(feature = "otel"))]
    fn to(_endpoint: &str) -> Self {
        let why = "this forebay-run was built without OpenTelemetry; build it with `cargo install \
                   --path handlers --features otel`, or unset OTEL_EXPORTER_OTLP_ENDPOINT";
        Self::silent(News::NotExported { why: why.to_owned() })
    }

    fn silent(news: News) -> Self {
        Self {
            layer: None,
            news,
            #[cfg(feature = "otel")]
            export: None,
        }
    }

    /// What is to listen to spans, once.
    pub(crate) fn layer(&mut self) -> Option<AnyLayer> {
        self.layer.take()
    }

    /// Does the work of the process, with spans until its end.
    pub(crate) fn during<T>(self, work: impl FnOnce() -> T) -> T {
        match &self.news {
            News::None => {}
            #[cfg(feature = "otel")]
            News::Exported { endpoint } => info!(endpoint, "spans are exported"),
            News::NotExported { why } => warn!(error = why, "spans are not exported"),
        }
        let done = work();
        #[cfg(feature = "otel")]
        if let Some(export) = self.export {
            export.end();
        }
        done
    }
}

/// Where the environment wants spans to go. An empty variable counts as none.
fn endpoint(variable: impl Fn(&str) -> Option<String>) -> Option<String> {
    let stated = |name: &str| variable(name).filter(|value| !value.is_empty());
    let disabled = stated("OTEL_SDK_DISABLED").is_some_and(|so| so.eq_ignore_ascii_case("true"));
    let elsewhere = stated("OTEL_TRACES_EXPORTER").is_some_and(|exporter| exporter != "otlp");
    if disabled || elsewhere {
        return None;
    }
    stated(TRACES_ENDPOINT).or_else(|| {
        // The general one names the root of all signals.
        stated(ENDPOINT).map(|root| format!("{}/v1/traces", root.trim_end_matches('/')))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(variables: &[(&str, &str)]) -> Option<String> {
        endpoint(|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_environment_says_where_spans_go() {
        assert_eq!(with(&[]), None);
        assert_eq!(with(&[(ENDPOINT, "")]), None);
        let root = (ENDPOINT, "http://collector:4318/");
        assert_eq!(with(&[root]).as_deref(), Some("http://collector:4318/v1/traces"));
        let own = (TRACES_ENDPOINT, "http://tempo/in");
        assert_eq!(with(&[root, own]).as_deref(), Some("http://tempo/in"));
        assert_eq!(with(&[root, ("OTEL_SDK_DISABLED", "TRUE")]), None);
        assert_eq!(with(&[root, ("OTEL_TRACES_EXPORTER", "none")]), None);
        assert!(with(&[root, ("OTEL_TRACES_EXPORTER", "otlp")]).is_some());
    }
}
