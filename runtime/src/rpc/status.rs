//! The API's one error as a gRPC status.
//!
//! Programs act on the code and on `ErrorInfo.reason`, the same word that HTTP bodies carry as `code`. A wrong field
//! is named in `BadRequest` and in the message, since not every client shows details.

use std::collections::HashMap;
use std::time::Duration;

use axum::http::StatusCode;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::api::error::ApiError;

const DOMAIN: &str = "quire";

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        let code = match error.status {
            StatusCode::UNAUTHORIZED => Code::Unauthenticated,
            StatusCode::FORBIDDEN => Code::PermissionDenied,
            StatusCode::NOT_FOUND => Code::NotFound,
            StatusCode::REQUEST_TIMEOUT => Code::DeadlineExceeded,
            StatusCode::PAYLOAD_TOO_LARGE | StatusCode::TOO_MANY_REQUESTS => Code::ResourceExhausted,
            StatusCode::SERVICE_UNAVAILABLE => Code::Unavailable,
            status if status.is_client_error() => Code::InvalidArgument,
            _ => Code::Internal,
        };
        let mut details = reason(error.code.unwrap_or("invalid_request"));
        if let Some(field) = error.param.filter(|field| !field.is_empty()) {
            details.add_bad_request_violation(field, error.message.clone());
        }
        if let Some(seconds) = error.retry_after {
            details.set_retry_info(Some(Duration::from_secs(u64::from(seconds))));
        }
        Status::with_error_details(code, error.message, details)
    }
}

/// A status that HTTP has no sibling of.
pub(super) fn status(code: Code, why: &'static str, message: &str) -> Status {
    Status::with_error_details(code, message, reason(why))
}

/// Too much at once: try again in a second.
pub(super) fn busy(why: &'static str, message: &str) -> Status {
    let mut details = reason(why);
    details.set_retry_info(Some(Duration::from_secs(1)));
    Status::with_error_details(Code::ResourceExhausted, message, details)
}

fn reason(why: &str) -> ErrorDetails {
    ErrorDetails::with_error_info(why, DOMAIN, HashMap::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_keeps_its_reason_and_names_its_field() {
        let status = Status::from(ApiError::invalid("namespace", "no namespace is called \"x\""));
        assert_eq!(
            (status.code(), status.message()),
            (Code::InvalidArgument, "no namespace is called \"x\"")
        );
        let details = status.get_error_details();
        assert_eq!(details.bad_request().unwrap().field_violations[0].field, "namespace");
        let status = Status::from(ApiError::loading());
        assert_eq!(status.code(), Code::Unavailable);
        let details = status.get_error_details();
        assert_eq!(details.error_info().unwrap().reason, "loading_model");
        assert!(details.retry_info().is_some());
    }
}
