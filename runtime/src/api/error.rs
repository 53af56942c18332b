//! The one error of the HTTP edge: a status and OpenAI's error body.
//!
//! Official clients decide by status and show `message`; programs look at `code` and `param`. So every
//! refusal here names the field it is about, and inner errors are mapped, never printed as they come.

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

use crate::purge::PurgeError;
use crate::request::Refusal;
use crate::text::TextError;

/// What a client hears when a request is not answered.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ApiError {
    pub status: StatusCode,
    pub message: String,
    /// The field that is wrong, in dotted form.
    pub param: Option<String>,
    /// Stable, for programs.
    pub code: Option<&'static str>,
    /// Seconds after which to try again.
    pub retry_after: Option<u32>,
}

impl ApiError {
    fn new(status: StatusCode, message: impl Into<String>, code: Option<&'static str>) -> Self {
        Self { status, message: message.into(), param: None, code, retry_after: None }
    }

    /// A field with a bad value.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::new(StatusCode::BAD_REQUEST, message, None) }
    }

    /// A field that asks for something this server cannot do; ignoring it would give another answer
    /// than the one asked for.
    pub fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: Some("unsupported_parameter"), ..Self::invalid(param, message) }
    }

    pub fn malformed(error: &serde_json::Error) -> Self {
        let message = format!("the request body is not valid JSON: {error}");
        Self::new(StatusCode::BAD_REQUEST, message, Some("invalid_json"))
    }

    pub fn unknown_model(name: &str) -> Self {
        let message = format!("the model {name:?} does not exist; GET /v1/models lists those that do");
        let error = Self::new(StatusCode::NOT_FOUND, message, Some("model_not_found"));
        Self { param: Some("model".into()), ..error }
    }

    pub fn unknown_path(method: &str, path: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("unknown URL: {method} {path}"), Some("unknown_url"))
    }

    pub fn wrong_method(method: &str, path: &str) -> Self {
        let message = format!("{path} does not take {method}");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, message, Some("method_not_allowed"))
    }

    pub fn unauthorized(message: &str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, message, Some("invalid_api_key"))
    }

    pub fn forbidden(message: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, message, Some("forbidden"))
    }

    pub fn body_too_large(limit: usize) -> Self {
        let message = format!("the request body is larger than {}", base::bytes_human(limit as u64));
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, message, Some("request_too_large"))
    }

    pub fn body_cut() -> Self {
        Self::new(StatusCode::BAD_REQUEST, "the request body ended early", Some("invalid_body"))
    }

    pub fn body_slow() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "the request body took too long", Some("request_timeout"))
    }

    pub fn loading() -> Self {
        Self::unavailable("loading model", "loading_model")
    }

    pub fn unavailable(message: impl Into<String>, code: &'static str) -> Self {
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, message, Some(code));
        Self { retry_after: Some(1), ..error }
    }

    pub fn overloaded(message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, message, Some("overloaded"));
        Self { retry_after: Some(1), ..error }
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message, Some("internal"))
    }

    pub fn too_long(tokens: usize, max_tokens: Option<u32>, limit: u32) -> Self {
        let asked = match max_tokens {
            Some(max) => format!("{tokens} in the prompt and {max} for the answer"),
            None => format!("{tokens} in the prompt"),
        };
        let message =
            format!("this model's maximum context length is {limit} tokens, the request asks for {asked}");
        let error = Self::new(StatusCode::BAD_REQUEST, message, Some("context_length_exceeded"));
        Self { param: Some("messages".into()), ..error }
    }

    pub fn with_param(self, param: &str) -> Self {
        Self { param: Some(param.into()), ..self }
    }

    fn kind(&self) -> &'static str {
        match self.status.as_u16() {
            429 => "rate_limit_error",
            503 => "service_unavailable_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// `{"error": {…}}`.
    pub fn body(&self) -> Value {
        json!({"error": {
            "message": self.message,
            "type": self.kind(),
            "param": self.param,
            "code": self.code,
        }})
    }

    pub fn response(&self) -> Response<Body> {
        let mut response = Response::new(Body::from(self.body().to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let message = refusal.to_string();
        match refusal {
            Refusal::TooLong { tokens, max_tokens, limit } => Self::too_long(tokens, Some(max_tokens), limit),
            Refusal::TooManyPages { .. } => {
                Self { code: Some("context_length_exceeded"), ..Self::invalid("max_tokens", message) }
            }
            Refusal::EmptyPrompt | Refusal::BadToken { .. } => Self::invalid("prompt", message),
            Refusal::Overloaded { .. } => Self::overloaded(message),
            Refusal::Expired => Self::unavailable(message, "expired_before_start"),
            Refusal::Draining => Self::unavailable(message, "draining"),
            Refusal::Purged => Self::unavailable(message, "purged"),
            Refusal::Engine(_) => Self::unavailable(message, "engine"),
        }
    }
}

impl From<PurgeError> for ApiError {
    fn from(error: PurgeError) -> Self {
        match error {
            PurgeError::Unknown(_) => Self::invalid("namespace", error.to_string()),
            PurgeError::Keys(_) => Self::internal(error.to_string()),
            PurgeError::Stopped => Self::unavailable(error.to_string(), "engine"),
        }
    }
}

impl From<TextError> for ApiError {
    fn from(error: TextError) -> Self {
        match error {
            TextError::Template(_) => Self::invalid("messages", error.to_string()),
            TextError::NoTemplate => {
                Self { code: Some("no_chat_template"), ..Self::invalid("messages", error.to_string()) }
            }
            TextError::Encode(_) => Self::invalid("prompt", error.to_string()),
            _ => Self::internal(error.to_string()),
        }
    }
}
