//! What a client hears when the router itself answers: a status, a reason that programs can read, and the
//! error body of the API that was called.
//!
//! Replicas' own refusals are passed through as they are; these are for what no replica has said. Each reason
//! is one word of a closed list, so that a broker in front can tell "full, go elsewhere" from "wrong, give up".

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Response, StatusCode, header};
use serde_json::json;

use super::body::AnswerBody;
use super::sniff::Face;

/// Tells a broker in front that this pool is full and another place may not be.
pub const OVERFLOW_HEADER: &str = "x-quire-overflow";

/// Why the router answers by itself.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Reason {
    InvalidJson,
    InvalidHeader,
    UnknownModel,
    UnknownUrl,
    MethodNotAllowed,
    InvalidApiKey,
    Forbidden,
    BodyTooLarge,
    BodyCut,
    BodySlow,
    /// More work is waiting than would be done in time.
    Saturated,
    /// This caller's own share is used up while others wait.
    TenantQueueFull,
    /// The deadline passed before the request could start.
    ExpiredBeforeStart,
    NoReplica,
    Draining,
    /// Every try failed before a byte came back.
    ReplicaFailed,
    /// No byte came back in time.
    ReplicaTimeout,
}

impl Reason {
    pub const ALL: [Reason; 17] = [
        Reason::InvalidJson,
        Reason::InvalidHeader,
        Reason::UnknownModel,
        Reason::UnknownUrl,
        Reason::MethodNotAllowed,
        Reason::InvalidApiKey,
        Reason::Forbidden,
        Reason::BodyTooLarge,
        Reason::BodyCut,
        Reason::BodySlow,
        Reason::Saturated,
        Reason::TenantQueueFull,
        Reason::ExpiredBeforeStart,
        Reason::NoReplica,
        Reason::Draining,
        Reason::ReplicaFailed,
        Reason::ReplicaTimeout,
    ];

    /// The `code` of the error body and the label in metrics.
    pub fn code(self) -> &'static str {
        match self {
            Reason::InvalidJson => "invalid_json",
            Reason::InvalidHeader => "invalid_header",
            Reason::UnknownModel => "model_not_found",
            Reason::UnknownUrl => "unknown_url",
            Reason::MethodNotAllowed => "method_not_allowed",
            Reason::InvalidApiKey => "invalid_api_key",
            Reason::Forbidden => "forbidden",
            Reason::BodyTooLarge => "request_too_large",
            Reason::BodyCut => "invalid_body",
            Reason::BodySlow => "request_timeout",
            Reason::Saturated => "saturated",
            Reason::TenantQueueFull => "tenant_queue_full",
            Reason::ExpiredBeforeStart => "expired_before_start",
            Reason::NoReplica => "no_replica",
            Reason::Draining => "draining",
            Reason::ReplicaFailed => "replica_failed",
            Reason::ReplicaTimeout => "replica_timeout",
        }
    }

    pub fn status(self) -> StatusCode {
        match self {
            Reason::InvalidJson | Reason::InvalidHeader | Reason::BodyCut => StatusCode::BAD_REQUEST,
            Reason::UnknownModel | Reason::UnknownUrl => StatusCode::NOT_FOUND,
            Reason::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Reason::InvalidApiKey => StatusCode::UNAUTHORIZED,
            Reason::Forbidden => StatusCode::FORBIDDEN,
            Reason::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Reason::BodySlow => StatusCode::REQUEST_TIMEOUT,
            Reason::Saturated | Reason::TenantQueueFull => StatusCode::TOO_MANY_REQUESTS,
            Reason::ExpiredBeforeStart | Reason::NoReplica | Reason::Draining => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Reason::ReplicaFailed => StatusCode::BAD_GATEWAY,
            Reason::ReplicaTimeout => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// Whether the same request may be taken elsewhere, now.
    pub fn is_overflow(self) -> bool {
        matches!(self, Reason::Saturated | Reason::TenantQueueFull | Reason::NoReplica | Reason::Draining)
    }
}

/// A refusal on its way to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reason: Reason,
    pub message: String,
    /// The field that is wrong.
    pub param: Option<&'static str>,
    pub retry_after_s: Option<u32>,
}

impl Refusal {
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        let retry_after_s = reason.is_overflow().then_some(1);
        Self { reason, message: message.into(), param: None, retry_after_s }
    }

    pub fn about(self, param: &'static str) -> Self {
        Self { param: Some(param), ..self }
    }

    pub fn retry_after(self, seconds: u32) -> Self {
        Self { retry_after_s: Some(seconds), ..self }
    }

    fn openai_kind(&self) -> &'static str {
        match self.reason.status().as_u16() {
            429 => "rate_limit_error",
            503 => "service_unavailable_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        }
    }

    fn anthropic_kind(&self) -> &'static str {
        match self.reason.status().as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            503 => "overloaded_error",
            500.. => "api_error",
            _ => "invalid_request_error",
        }
    }

    /// The error body of `face`.
    pub fn body(&self, face: Face) -> String {
        let body = match face {
            Face::OpenAi => json!({"error": {
                "message": self.message, "type": self.openai_kind(), "param": self.param, "code": self.reason.code(),
            }}),
            Face::Anthropic => json!({"type": "error", "error": {
                "type": self.anthropic_kind(), "message": self.message,
            }}),
        };
        body.to_string()
    }

    pub fn response(&self, face: Face) -> Response<AnswerBody> {
        let mut builder = Response::builder()
            .status(self.reason.status())
            .header(header::CONTENT_TYPE, "application/json")
            .header("x-quire-reason", self.reason.code());
        if let Some(seconds) = self.retry_after_s {
            builder = builder.header(header::RETRY_AFTER, seconds);
        }
        if self.reason.is_overflow() {
            builder = builder.header(OVERFLOW_HEADER, self.reason.code());
        }
        if self.reason == Reason::InvalidApiKey {
            builder = builder.header(header::WWW_AUTHENTICATE, "Bearer");
        }
        let body = AnswerBody::Whole(Full::new(Bytes::from(self.body(face))));
        builder.body(body).expect("constant headers")
    }

    /// The last event of a stream that was cut short, so that nobody takes half an answer for a whole one.
    pub fn event(&self, face: Face) -> Bytes {
        let name = if face == Face::Anthropic { "event: error\n" } else { "" };
        Bytes::from(format!("{name}data: {}\n\n", self.body(face)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn every_reason_has_a_code_of_its_own() {
        let mut codes: Vec<_> = Reason::ALL.iter().map(|reason| reason.code()).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), Reason::ALL.len());
    }

    #[test]
    fn a_refusal_speaks_the_callers_api() {
        let full = Refusal::new(Reason::Saturated, "busy").about("model");
        expect![[
            r#"{"error":{"message":"busy","type":"rate_limit_error","param":"model","code":"saturated"}}"#
        ]]
        .assert_eq(&full.body(Face::OpenAi));
        expect![[r#"{"type":"error","error":{"type":"rate_limit_error","message":"busy"}}"#]]
            .assert_eq(&full.body(Face::Anthropic));
        let response = full.response(Face::OpenAi);
        assert_eq!(response.headers()[OVERFLOW_HEADER], "saturated");
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
    }

    #[test]
    fn a_cut_stream_ends_with_an_event_of_its_api() {
        let cut = Refusal::new(Reason::ReplicaFailed, "gone");
        assert!(cut.event(Face::OpenAi).starts_with(b"data: {\"error\""));
        assert!(cut.event(Face::Anthropic).starts_with(b"event: error\ndata: {\"type\":\"error\""));
    }
}
