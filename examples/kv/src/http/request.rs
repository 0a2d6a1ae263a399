//! What clients send, and what of it is refused: keys, queries, headers and bodies.

use crate::command::{Expected, Session};
use crate::http::refusal::Refusal;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Query;
use axum::http::{HeaderMap, HeaderName, StatusCode, Uri, header};
use bytes::BytesMut;
use futures_util::StreamExt;
use percent_encoding::percent_decode_str;
use serde::de::DeserializeOwned;
use std::error::Error;
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

/// Whose request it is; see [`Session`].
pub(crate) const CLIENT: HeaderName = HeaderName::from_static("kv-client");
/// Which of that client's requests it is.
pub(crate) const SEQUENCE: HeaderName = HeaderName::from_static("kv-sequence");

/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// How much of what is too large is received in vain: most clients hear nothing while they send.
const DISCARDED: usize = 64 * 1024 * 1024;

/// The key in the path, percent-decoded: everything after `/kv/`, slashes and all.
pub(crate) fn key_in_path(uri: &Uri) -> Result<String, Refusal> {
    let raw = uri.path().strip_prefix("/kv/").unwrap_or_default();
    let bad = |_| {
        Refusal::bad(
            "bad_key",
            "Keys are text in UTF-8. Percent-encode the key's bytes, and send valid UTF-8.",
        )
    };
    let key = percent_decode_str(raw).decode_utf8().map_err(bad)?;
    Ok(key.into_owned())
}

/// What is asked for after the `?`.
pub(crate) fn query<T: DeserializeOwned>(uri: &Uri) -> Result<T, Refusal> {
    let Query(query) = Query::try_from_uri(uri).map_err(|rejection| {
        // The outer error only says that there is one.
        let reason = rejection.source().map_or(rejection.to_string(), |it| it.to_string());
        let message =
            format!("The query after the ? makes no sense: {reason}. Leave it out, or correct it.");
        Refusal::bad("bad_query", message)
    })?;
    Ok(query)
}

/// The value of a header that may be sent once.
fn once<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Refusal> {
    let mut values = headers.get_all(name).iter();
    let (first, second) = (values.next(), values.next());
    let bad = || Refusal::bad("bad_header", format!("Send {name} once at most, as plain text."));
    match (first, second) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(str::trim).map(Some).map_err(|_| bad()),
        (Some(_), Some(_)) => Err(bad()),
    }
}

fn number(headers: &HeaderMap, name: &HeaderName) -> Result<Option<u64>, Refusal> {
    let parse = |text: &str| {
        let bad = |_| {
            Refusal::bad("bad_header", format!("The header {name} is a number; {text:?} is not."))
        };
        text.parse().map_err(bad)
    };
    once(headers, name)?.map(parse).transpose()
}

/// The session that a request belongs to.
pub(crate) fn session(headers: &HeaderMap) -> Result<Option<Session>, Refusal> {
    match (number(headers, &CLIENT)?, number(headers, &SEQUENCE)?) {
        (None, None) => Ok(None),
        (Some(client), Some(sequence)) if sequence > 0 => Ok(Some(Session { client, sequence })),
        _ => Err(Refusal::bad(
            "bad_session",
            "Kv-Client and Kv-Sequence go together: the number that POST /sessions gave, and 1, 2, \
             3 ... for that client's requests.",
        )),
    }
}

/// The version in an entity tag: `"7"`, or 7 as people type it.
fn version(tag: &str) -> Option<u64> {
    let bare = tag.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(tag);
    bare.bytes().all(|byte| byte.is_ascii_digit()).then(|| bare.parse().ok()).flatten()
}

/// What a write expects of its key.
pub(crate) fn expected(headers: &HeaderMap) -> Result<Option<Expected>, Refusal> {
    let if_match = once(headers, &header::IF_MATCH)?;
    let if_none_match = once(headers, &header::IF_NONE_MATCH)?;
    match (if_match, if_none_match) {
        (None, None) => Ok(None),
        (Some("*"), None) => Ok(Some(Expected::Present)),
        (None, Some("*")) => Ok(Some(Expected::Absent)),
        (Some(tag), None) if version(tag).is_some() => Ok(version(tag).map(Expected::Version)),
        _ => Err(Refusal::bad(
            "bad_condition",
            "A write takes one condition: If-Match with one version as ETag gave it, like \"7\"; \
             If-Match: * if the key must exist; or If-None-Match: * if it must not.",
        )),
    }
}

/// The version that a reader holds already.
pub(crate) fn held(headers: &HeaderMap) -> Result<Option<u64>, Refusal> {
    Ok(once(headers, &header::IF_NONE_MATCH)?.and_then(version))
}

/// The last event that a watcher has seen before its connection broke.
pub(crate) fn last_event(headers: &HeaderMap) -> Result<Option<u64>, Refusal> {
    number(headers, &HeaderName::from_static("last-event-id"))
}

/// Bytes of bodies that may be underway, each with its permit.
pub(crate) struct Room {
    permits: Semaphore,
    bytes: usize,
}

impl Room {
    pub(crate) fn new(bytes: usize) -> Room {
        let bytes = bytes.min(Semaphore::MAX_PERMITS).min(u32::MAX as usize);
        Room { permits: Semaphore::new(bytes), bytes }
    }

    /// Room for as much as the body says that it has, or may have.
    fn take(&self, body: &Body, limit: usize) -> Result<SemaphorePermit<'_>, Refusal> {
        let size = body.size_hint().upper().and_then(|size| usize::try_from(size).ok());
        let size = size.unwrap_or(limit).min(limit).min(self.bytes);
        let permits = self.permits.try_acquire_many(u32::try_from(size).unwrap_or(u32::MAX));
        permits.map_err(|_| Refusal::busy(Duration::from_secs(1)))
    }
}

/// All of a body, if there is room for it, it is not too large and does not take for ever.
pub(crate) async fn body(room: &Room, body: Body, limit: usize) -> Result<Bytes, Refusal> {
    let _room = room.take(&body, limit)?;
    timeout(BODY_TIMEOUT, receive(body, limit)).await.unwrap_or_else(|_| {
        let seconds = BODY_TIMEOUT.as_secs();
        let message = format!("The body took more than {seconds} s. Send it faster.");
        Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", message))
    })
}

async fn receive(body: Body, limit: usize) -> Result<Bytes, Refusal> {
    let too_large = || {
        let message = format!("The body is larger than {limit} bytes, the limit. Send less.");
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message).with("limit", limit)
    };
    if body.size_hint().lower() > (limit + DISCARDED) as u64 {
        return Err(too_large());
    }
    let (mut pieces, mut bytes, mut received) = (body.into_data_stream(), BytesMut::new(), 0);
    while let Some(piece) = pieces.next().await {
        let ended = |_| Refusal::bad("bad_body", "The body ended early. Send all of it.");
        let piece = piece.map_err(ended)?;
        received += piece.len();
        if received <= limit {
            bytes.extend_from_slice(&piece);
        } else if received > limit + DISCARDED {
            break;
        }
    }
    if received > limit { Err(too_large()) } else { Ok(bytes.freeze()) }
}

/// A body that is JSON.
pub(crate) fn json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(bytes).map_err(|error| {
        let message = format!("The body is not the JSON that belongs here: {error}.");
        Refusal::bad("bad_json", message)
    })
}
