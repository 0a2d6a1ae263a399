//! `GET /watch`: changes as they happen, as server-sent events.

use crate::http::json::{ChangeBody, ChangesBody};
use crate::http::refusal::Refusal;
use crate::http::{Server, request};
use crate::node::{Change, Consistency, Watch, WatchError};
use crate::store::Store;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::IntoResponse;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream::{self, Stream, StreamExt};
use serde::Deserialize;
use std::convert::Infallible;
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Asked {
    #[serde(default)]
    prefix: String,
    from: Option<u64>,
}

/// `GET /watch?prefix=&from=`
pub(crate) async fn watch(
    State(server): State<Arc<Server>>, uri: Uri, headers: HeaderMap,
) -> Result<impl IntoResponse, Refusal> {
    let Asked { prefix, from } = request::query(&uri)?;
    // A browser that has lost its connection asks again for the same, and tells what it has seen.
    let seen = request::last_event(&headers)?.map(|revision| revision.saturating_add(1));
    if server.is_ending() {
        return Err(WatchError::ShuttingDown.into());
    }
    let permit = server.watchers.clone().try_acquire_owned().map_err(|_| {
        let message = "Too many watch at this node already. Watch at another node.";
        Refusal::new(StatusCode::TOO_MANY_REQUESTS, "too_many_watchers", message)
    })?;
    let latest = server.node.read(Consistency::Stale, Store::revision).await?;
    let from = seen.or(from).unwrap_or(latest + 1);
    let watch = server.node.watch(Some(from), &prefix)?;
    let events = events(watch, permit).take_until(server.stopped());
    // So that a client that has heard nothing yet knows where to go on elsewhere.
    let since = [("kv-revision", from.saturating_sub(1).to_string())];
    Ok((since, Sse::new(events).keep_alive(KeepAlive::default())))
}

/// Each write's changes as one event. An error is the last.
fn events(
    watch: Watch, permit: OwnedSemaphorePermit,
) -> impl Stream<Item = Result<Event, Infallible>> {
    let batches = stream::unfold(Some((watch, permit)), |state| async {
        let (mut watch, permit) = state?;
        match watch.next().await {
            Ok(changes) => {
                let events = changes.chunk_by(|one, next| one.revision == next.revision);
                let events: Vec<_> = events.map(event).collect();
                Some((events, Some((watch, permit))))
            }
            Err(error) => Some((vec![farewell(error)], None)),
        }
    });
    batches.flat_map(|events| stream::iter(events.into_iter().map(Ok)))
}

fn event(changes: &[Change]) -> Event {
    let revision = changes.first().map_or(0, |change| change.revision);
    let changes = changes.iter().cloned().map(ChangeBody::from).collect();
    let event = Event::default().event("change").id(revision.to_string());
    event.json_data(ChangesBody { revision, changes }).unwrap_or_default()
}

fn farewell(error: WatchError) -> Event {
    Event::default().event("error").json_data(Refusal::from(error)).unwrap_or_default()
}
