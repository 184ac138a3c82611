//! The page of `examples/page.html`, for those who want to look before they write one.
//! In: `page = true`. Out: the page at `/`, which may load nothing and speaks to us alone.

use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::response::IntoResponse;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};

const PAGE: &str = include_str!("../examples/page.html");

/// Its route's answer.
pub(crate) async fn answer() -> impl IntoResponse {
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8".to_owned()),
        (CONTENT_SECURITY_POLICY, policy(PAGE)),
        (X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (REFERRER_POLICY, "no-referrer".to_owned()),
        (CACHE_CONTROL, "no-cache".to_owned()),
    ];
    (headers, PAGE)
}

/// Its own script and its own style may run, by their hashes, and nothing that got in between.
fn policy(page: &str) -> String {
    let own = |begin: &str, end: &str| {
        let inner = page.split_once(begin).and_then(|(_, rest)| rest.split_once(end));
        let (inner, _) = inner.expect("the page has one script and one style");
        format!("'sha256-{}'", STANDARD.encode(digest(&SHA256, inner.as_bytes())))
    };
    format!(
        "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        own("<script type=\"module\">", "</script>"),
        own("<style>", "</style>"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_takes_nothing_from_elsewhere_and_makes_no_html_of_what_it_is_told() {
        for word in ["<script src", "import ", "innerHTML", "outerHTML", "insertAdjacent", "cdn."] {
            assert!(!PAGE.contains(word), "{word}");
        }
        assert_eq!(PAGE.matches("<script").count(), 1);
        assert_eq!((PAGE.matches("<style").count(), PAGE.matches(" style=").count()), (1, 0));
    }

    #[test]
    fn only_what_is_written_there_may_run() {
        let policy = policy("<style>a</style><script type=\"module\"></script>");
        // Of "a", and of nothing.
        assert!(policy.contains("style-src 'sha256-ypeBEsobvcr6wjGzmiPcTaeG7/gUfE5yuYB3ha/uSLs='"));
        assert!(
            policy.contains("script-src 'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='")
        );
    }
}
