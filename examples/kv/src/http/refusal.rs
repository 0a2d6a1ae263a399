//! Why a request was not done: a status, a code for programs, a sentence for people.

use crate::command::Outcome;
use crate::node::{ReadError, TransferError, WatchError, WriteError};
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Map, Value};
use std::time::Duration;

/// What is sent instead of an answer: a JSON object with `error`, `message`, and what is known.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) code: &'static str,
    message: String,
    facts: Map<String, Value>,
    retry_after: Option<Duration>,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Refusal { status, code, message: message.into(), facts: Map::new(), retry_after: None }
    }

    /// What was sent makes no sense.
    pub(crate) fn bad(code: &'static str, message: impl Into<String>) -> Self {
        Refusal::new(StatusCode::BAD_REQUEST, code, message)
    }

    pub(crate) fn not_found(key: &str) -> Self {
        let message = format!("There is no key {key:?}. Put it first, or GET /kv to list what is.");
        Refusal::new(StatusCode::NOT_FOUND, "not_found", message).with("key", key)
    }

    /// There is too much to do.
    pub(crate) fn busy(time: Duration) -> Self {
        let message = "Too much is underway at this node, so nothing was done. Wait for as long as \
                       Retry-After says, then try again.";
        Refusal::new(StatusCode::TOO_MANY_REQUESTS, "busy", message).retry_after(time)
    }

    /// Adds what a program may want to know.
    pub(crate) fn with(mut self, name: &str, fact: impl Into<Value>) -> Self {
        self.facts.insert(name.to_string(), fact.into());
        self
    }

    fn retry_after(mut self, time: Duration) -> Self {
        self.retry_after = Some(time);
        self
    }
}

/// A refusal as it is sent.
impl Serialize for Refusal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut body = serializer.serialize_map(None)?;
        body.serialize_entry("error", self.code)?;
        body.serialize_entry("message", &self.message)?;
        self.facts.iter().try_for_each(|(name, fact)| body.serialize_entry(name, fact))?;
        body.end()
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, retry_after) = (self.status, self.retry_after);
        let mut response = (status, Json(self)).into_response();
        if let Some(time) = retry_after {
            // The header counts whole seconds, and 0 would be no waiting at all.
            let seconds = time.as_millis().div_ceil(1000).max(1);
            let value = HeaderValue::from(u64::try_from(seconds).unwrap_or(u64::MAX));
            response.headers_mut().insert(header::RETRY_AFTER, value);
        }
        response
    }
}

const SOON: Duration = Duration::from_secs(1);

fn no_leader(what: &str) -> Refusal {
    let message = format!(
        "No leader was found in time, so {what}. A majority of the voters must be up and reach \
         each other; GET /cluster/status tells who is. Then try again."
    );
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "no_leader", message).retry_after(SOON)
}

fn shutting_down() -> Refusal {
    let message = "This node is being stopped, or its replica has failed, so nothing was done. Ask \
                   another node.";
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", message).retry_after(SOON)
}

fn outcome_unknown() -> Refusal {
    let message = "The write may or may not have been done, or may still be. Read to find out. To \
                   be able to send a write again until it is known to be done, once, open a session \
                   with POST /sessions and send Kv-Client and Kv-Sequence with each write.";
    Refusal::new(StatusCode::GATEWAY_TIMEOUT, "outcome_unknown", message)
}

impl From<WriteError> for Refusal {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::NoLeader => no_leader("nothing was done"),
            WriteError::Busy { retry_after } => Refusal::busy(retry_after),
            WriteError::TooLarge { reason } => {
                let message = format!("{} Send less.", sentence(&reason));
                Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
            }
            WriteError::Invalid { reason } => Refusal::bad("invalid", sentence(&reason)),
            WriteError::OutcomeUnknown => outcome_unknown(),
            WriteError::ShuttingDown => shutting_down(),
        }
    }
}

impl From<ReadError> for Refusal {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::NoLeader => no_leader(
                "it is not known whether the answer would be fresh (with ?consistency=stale you \
                 get what this node knows)",
            ),
            ReadError::Busy { retry_after } => Refusal::busy(retry_after),
            ReadError::ShuttingDown => shutting_down(),
        }
    }
}

impl From<TransferError> for Refusal {
    fn from(error: TransferError) -> Self {
        match error {
            TransferError::NoLeader => no_leader("there is nobody to hand leadership over"),
            TransferError::NotAVoter { voters } => {
                let message = "Only a voter can lead. Name one of the voters, or promote the node \
                               with PUT /cluster/members first.";
                let voters: Vec<_> = voters.into_iter().collect();
                Refusal::new(StatusCode::CONFLICT, "not_a_voter", message).with("voters", voters)
            }
            TransferError::TimedOut => {
                let message = "Leadership has not arrived there in time. GET /cluster/status tells \
                               who leads; try again once the node has caught up.";
                Refusal::new(StatusCode::GATEWAY_TIMEOUT, "transfer_timed_out", message)
            }
            TransferError::ShuttingDown => shutting_down(),
        }
    }
}

impl From<WatchError> for Refusal {
    fn from(error: WatchError) -> Self {
        match error {
            WatchError::Forgotten { oldest } => {
                let message = "Changes from so long ago are forgotten. List the keys with GET /kv, \
                               then watch from the revision after the one that the list tells.";
                Refusal::new(StatusCode::GONE, "forgotten", message).with("oldest", oldest)
            }
            WatchError::ShuttingDown => shutting_down(),
        }
    }
}

/// A reason as a sentence by itself.
pub(crate) fn sentence(reason: &str) -> String {
    let mut letters = reason.chars();
    let first = letters.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
    let end = if reason.ends_with('.') { "" } else { "." };
    format!("{first}{}{end}", letters.as_str())
}

/// Turns an outcome that is no success into a refusal.
pub(crate) fn refusal_of(outcome: Outcome) -> Refusal {
    match outcome {
        Outcome::ConditionFailed { key, actual } => {
            let found = match actual {
                Some(version) => format!("has version {version}"),
                None => "does not exist".to_string(),
            };
            let message = format!(
                "A condition did not hold, so nothing was done: the key {key:?} {found}. Read it \
                 again, and decide anew."
            );
            let refusal =
                Refusal::new(StatusCode::PRECONDITION_FAILED, "condition_failed", message);
            refusal.with("key", key).with("actual", actual)
        }
        Outcome::StaleSequence { latest } => {
            let message = format!(
                "A later request of this client, number {latest}, was done already, and what became \
                 of this one is no longer known. Send requests one after the other, each with a \
                 greater Kv-Sequence."
            );
            Refusal::new(StatusCode::CONFLICT, "stale_sequence", message).with("latest", latest)
        }
        Outcome::SessionExpired => {
            let message = "There is no such session, or no longer, so nothing was done now; what \
                           became of earlier tries is not known. Open another with POST /sessions.";
            Refusal::new(StatusCode::GONE, "session_expired", message)
        }
        Outcome::Done { .. } | Outcome::SessionOpened { .. } => {
            let message = "The node gave an answer that does not fit the question, which is a bug. \
                           Read to find out what was done, and report it.";
            Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "bug", message)
        }
    }
}
