//! The answer to a request, from the view.

use hyper::{Method, StatusCode};

use crate::history::WallTime;

use super::family::{Format, encode};
use super::metrics::families;
use super::page::{self, SCRIPT, STYLE, Samples, View};
use super::process::ProcessUsage;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) content_type: &'static str,
    pub(super) body: String,
}

impl Reply {
    fn text(status: StatusCode, body: impl Into<String>) -> Self {
        let mut body = body.into();
        body.push('\n');
        Self { status, content_type: "text/plain; charset=utf-8", body }
    }
}

/// The part of a request that an answer depends on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Question<'a> {
    pub(super) method: &'a Method,
    pub(super) path: &'a str,
    /// The `Accept` header; empty without one.
    pub(super) accept: &'a str,
}

/// The paths that are served, but for those that the page refers to.
const PATHS: &str = "/, /metrics, /healthz, /readyz, /api/v1/status, /api/v1/events";
/// The path of the event stream, which [`answer`] does not serve.
pub(super) const EVENTS: &str = "/api/v1/events";

/// The answer to a request for which the view does not matter.
pub(super) fn refusal(question: Question<'_>) -> Option<Reply> {
    if !matches!(*question.method, Method::GET | Method::HEAD) {
        return Some(Reply::text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are served"));
    }
    let part = match question.path {
        "/style.css" => Some(("text/css; charset=utf-8", STYLE)),
        "/page.js" => Some(("text/javascript; charset=utf-8", SCRIPT)),
        _ => None,
    };
    if let Some((content_type, body)) = part {
        return Some(Reply { status: StatusCode::OK, content_type, body: body.to_owned() });
    }
    let is_known = PATHS.split(", ").any(|path| path == question.path);
    (!is_known).then(|| Reply::text(StatusCode::NOT_FOUND, format!("not found; there are: {PATHS}")))
}

/// The answer if there are as many event streams as there may be.
pub(super) fn too_many_streams() -> Reply {
    Reply::text(StatusCode::SERVICE_UNAVAILABLE, "too many event streams are open; try again later")
}

/// The answer to a request that is no [`refusal`]. `view` is `None` if the event loop does not answer; `usage` reads what the
/// process uses, where that is asked for.
pub(super) fn answer(
    question: Question<'_>,
    view: Option<&View>,
    samples: &Samples,
    usage: impl FnOnce() -> ProcessUsage,
) -> Reply {
    let Some(view @ View { status, .. }) = view else {
        return Reply::text(StatusCode::SERVICE_UNAVAILABLE, "the daemon's event loop does not answer");
    };
    match question.path {
        "/" => Reply {
            status: StatusCode::OK,
            content_type: "text/html; charset=utf-8",
            body: page::page(view, samples, WallTime::now()).into_string(),
        },
        "/readyz" if !status.serving.serving => {
            let reason = status.serving.reason.as_deref().unwrap_or("no evidence yet");
            Reply::text(StatusCode::SERVICE_UNAVAILABLE, format!("this node cannot serve: {reason}"))
        }
        "/metrics" => {
            let format = Format::accepted(question.accept);
            match encode(families(status, &usage()), format) {
                Ok(body) => Reply { status: StatusCode::OK, content_type: format.content_type(), body },
                Err(error) => Reply::text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
            }
        }
        "/api/v1/status" => match serde_json::to_string(status) {
            Ok(body) => Reply { status: StatusCode::OK, content_type: "application/json", body },
            Err(error) => Reply::text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        },
        _ => Reply::text(StatusCode::OK, "ok"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::schema::{Serving, Status};

    fn ask(method: &Method, path: &str, status: Option<&Status>) -> Reply {
        let question = Question { method, path, accept: "" };
        let view = status.map(|status| View { status: status.clone(), ..View::default() });
        let answer = || answer(question, view.as_ref(), &Samples::default(), ProcessUsage::default);
        refusal(question).unwrap_or_else(answer)
    }

    #[test]
    fn the_page_and_its_parts_have_their_types() {
        for (path, content_type, text) in [
            ("/", "text/html; charset=utf-8", "<!DOCTYPE html>"),
            ("/style.css", "text/css; charset=utf-8", "prefers-color-scheme"),
            ("/page.js", "text/javascript; charset=utf-8", "EventSource"),
        ] {
            let reply = ask(&Method::GET, path, Some(&Status::default()));
            assert_eq!((reply.status, reply.content_type), (StatusCode::OK, content_type));
            assert!(reply.body.contains(text), "{path}: {}", reply.body);
        }
    }

    #[test]
    fn readiness_is_the_serving_verdict_and_health_is_an_answer() {
        let serving = |serving, reason: Option<&str>| Status {
            serving: Serving { serving, reason: reason.map(str::to_owned), ..Serving::default() },
            ..Status::default()
        };
        let (able, unable) = (serving(true, None), serving(false, Some("no healthy backend")));
        for (path, status, code, text) in [
            ("/readyz", Some(&able), 200, "ok\n"),
            ("/readyz", Some(&unable), 503, "this node cannot serve: no healthy backend\n"),
            ("/healthz", Some(&unable), 200, "ok\n"),
            ("/healthz", None, 503, "the daemon's event loop does not answer\n"),
            ("/readyz", None, 503, "the daemon's event loop does not answer\n"),
        ] {
            let reply = ask(&Method::GET, path, status);
            assert_eq!((reply.status.as_u16(), &*reply.body), (code, text), "{path}");
        }
    }

    #[test]
    fn the_status_is_that_of_the_command() {
        let status = Status { schema: 1, pid: 7, ..Status::default() };
        let reply = ask(&Method::GET, "/api/v1/status", Some(&status));
        let shown: Status = serde_json::from_str(&reply.body).unwrap();
        assert_eq!((shown.schema, shown.pid, reply.content_type), (1, 7, "application/json"));
    }

    #[test]
    fn other_methods_and_paths_are_refused_without_the_status() {
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::CONNECT, Method::OPTIONS] {
            assert_eq!(ask(&method, "/metrics", None).status, StatusCode::METHOD_NOT_ALLOWED);
        }
        let reply = ask(&Method::GET, "/metrics/", None);
        assert_eq!(
            (reply.status.as_u16(), &*reply.body),
            (404, "not found; there are: /, /metrics, /healthz, /readyz, /api/v1/status, /api/v1/events\n")
        );
    }
}
