//! The messages of the external processor, read and written.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use proto::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use proto::envoy::config::core::v3::{HeaderMap, HeaderValue, HeaderValueOption, Metadata};
use proto::envoy::service::ext_proc::v3::body_mutation::Mutation;
use proto::envoy::service::ext_proc::v3::processing_response::Response;
use proto::envoy::service::ext_proc::v3::{
    BodyMutation, BodyResponse, CommonResponse, HeaderMutation, HeadersResponse, ImmediateResponse,
    ProcessingResponse, StreamedBodyResponse, TrailersResponse,
};
use proto::envoy::r#type::v3::HttpStatus;

use crate::proxy::refusal::{OVERFLOW_HEADER, Refusal};
use crate::proxy::sniff::Face;

/// Where the choice is told, as a header and as a key of the metadata.
pub const DESTINATION: &str = "x-gateway-destination-endpoint";
/// The namespace of load balancing in the metadata.
const BALANCER: &str = "envoy.lb";
const SUBSET_HINT: &str = "envoy.lb.subset_hint";
const SUBSET: &str = "x-gateway-destination-endpoint-subset";
const SERVED: &str = "x-gateway-destination-endpoint-served";
/// Largest piece of a body in one message; Envoy refuses larger ones.
const PIECE_BYTES_MAX: usize = 62_000;

/// Headers by lower-case name; of several alike the last.
pub fn headers(map: Option<&HeaderMap>) -> BTreeMap<String, String> {
    let text = |header: &HeaderValue| match header.raw_value.is_empty() {
        true => header.value.clone(),
        false => String::from_utf8_lossy(&header.raw_value).into_owned(),
    };
    map.into_iter().flat_map(|map| &map.headers).map(|h| (h.key.to_ascii_lowercase(), text(h))).collect()
}

/// Who may be chosen, if the gateway says so: `ip:port`s, possibly none.
pub fn subset(metadata: Option<&Metadata>) -> Option<Vec<String>> {
    let hint = field(metadata?, SUBSET_HINT, SUBSET)?;
    let split = |text: &str| text.split(',').map(|e| e.trim().to_owned()).filter(|e| !e.is_empty()).collect();
    match hint {
        Kind::StringValue(text) => Some(split(text)),
        Kind::ListValue(list) => Some(
            list.values
                .iter()
                .filter_map(|value| match &value.kind {
                    Some(Kind::StringValue(text)) => Some(text.trim().to_owned()),
                    _ => None,
                })
                .collect(),
        ),
        _ => None,
    }
}

/// Who served, if the gateway says so.
pub fn served(metadata: Option<&Metadata>) -> Option<&str> {
    match field(metadata?, BALANCER, SERVED)? {
        Kind::StringValue(text) => Some(text.trim()),
        _ => None,
    }
}

fn field<'a>(metadata: &'a Metadata, filter: &str, key: &str) -> Option<&'a Kind> {
    metadata.filter_metadata.get(filter)?.fields.get(key)?.kind.as_ref()
}

/// How the choice travels with a response.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Carrier {
    Headers,
    /// The headers are gone already: the body was buffered.
    Body,
}

/// The choice, told.
pub fn chosen(endpoints: &str, carrier: Carrier) -> ProcessingResponse {
    let common = CommonResponse {
        header_mutation: Some(HeaderMutation {
            set_headers: vec![set(DESTINATION, endpoints)],
            remove_headers: Vec::new(),
        }),
        clear_route_cache: true,
        ..CommonResponse::default()
    };
    let response = match carrier {
        Carrier::Headers => Response::RequestHeaders(HeadersResponse { response: Some(common) }),
        Carrier::Body => Response::RequestBody(BodyResponse { response: Some(common) }),
    };
    let value = Value { kind: Some(Kind::StringValue(endpoints.to_owned())) };
    let balancer = Struct { fields: [(DESTINATION.to_owned(), value)].into() };
    let balancer = Value { kind: Some(Kind::StructValue(balancer)) };
    let metadata = Struct { fields: [(BALANCER.to_owned(), balancer)].into() };
    ProcessingResponse { response: Some(response), dynamic_metadata: Some(metadata) }
}

pub fn request_headers() -> ProcessingResponse {
    plain(Response::RequestHeaders(HeadersResponse::default()))
}

pub fn response_headers() -> ProcessingResponse {
    plain(Response::ResponseHeaders(HeadersResponse::default()))
}

pub fn request_trailers() -> ProcessingResponse {
    plain(Response::RequestTrailers(TrailersResponse::default()))
}

pub fn response_trailers() -> ProcessingResponse {
    plain(Response::ResponseTrailers(TrailersResponse::default()))
}

pub fn buffered_response_body() -> ProcessingResponse {
    plain(Response::ResponseBody(BodyResponse::default()))
}

/// The request's body, sent back in pieces.
pub fn request_body(body: &Bytes, is_end: bool) -> Vec<ProcessingResponse> {
    pieces(body, is_end).map(|piece| plain(Response::RequestBody(piece))).collect()
}

/// A piece of the answer's body, sent back.
pub fn response_body(body: &Bytes, is_end: bool) -> Vec<ProcessingResponse> {
    pieces(body, is_end).map(|piece| plain(Response::ResponseBody(piece))).collect()
}

fn pieces(body: &Bytes, is_end: bool) -> impl Iterator<Item = BodyResponse> {
    let count = body.len().div_ceil(PIECE_BYTES_MAX).max(1);
    (0..count).map(move |at| {
        let (from, to) = (at * PIECE_BYTES_MAX, body.len().min((at + 1) * PIECE_BYTES_MAX));
        let end_of_stream = is_end && at + 1 == count;
        let piece = StreamedBodyResponse { body: body[from..to].to_vec(), end_of_stream };
        let mutation = BodyMutation { mutation: Some(Mutation::StreamedResponse(piece)) };
        BodyResponse {
            response: Some(CommonResponse { body_mutation: Some(mutation), ..CommonResponse::default() }),
        }
    })
}

/// A refusal that goes to the client at once.
pub fn refused(refusal: &Refusal, face: Face) -> ProcessingResponse {
    let mut set_headers =
        vec![set("content-type", "application/json"), set("x-quire-reason", refusal.reason.code())];
    if refusal.reason.is_overflow() {
        set_headers.push(set(OVERFLOW_HEADER, refusal.reason.code()));
    }
    if let Some(seconds) = refusal.retry_after_s {
        set_headers.push(set("retry-after", &seconds.to_string()));
    }
    plain(Response::ImmediateResponse(ImmediateResponse {
        status: Some(HttpStatus { code: i32::from(refusal.reason.status().as_u16()) }),
        headers: Some(HeaderMutation { set_headers, remove_headers: Vec::new() }),
        body: refusal.body(face).into_bytes(),
        details: refusal.reason.code().to_owned(),
    }))
}

fn plain(response: Response) -> ProcessingResponse {
    ProcessingResponse { response: Some(response), dynamic_metadata: None }
}

fn set(key: &str, value: &str) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue {
            key: key.to_owned(),
            value: String::new(),
            raw_value: value.as_bytes().to_vec(),
        }),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_body_goes_back_in_pieces_and_only_the_last_ends_it() {
        let body = Bytes::from(vec![7; PIECE_BYTES_MAX * 2 + 1]);
        let pieces: Vec<_> = pieces(&body, true)
            .map(|piece| match piece.response.unwrap().body_mutation.unwrap().mutation.unwrap() {
                Mutation::StreamedResponse(piece) => (piece.body.len(), piece.end_of_stream),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(pieces, [(PIECE_BYTES_MAX, false), (PIECE_BYTES_MAX, false), (1, true)]);
        assert_eq!(request_body(&Bytes::new(), true).len(), 1, "an empty body ends too");
    }
}
