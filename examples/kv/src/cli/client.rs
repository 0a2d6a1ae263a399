//! Talks to a cluster: to one node, and to the next if that one cannot help.

use crate::cli::failure::{Failure, Kind};
use reqwest::header::RETRY_AFTER;
use reqwest::{Method, RequestBuilder, Response};
use serde::de::DeserializeOwned;
use std::time::{Duration, Instant};

/// Between two rounds through all nodes.
const PAUSE: Duration = Duration::from_millis(200);

/// Whether a request may be sent again if nobody knows what became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// It changes nothing, or nothing that matters.
    Harmless,
    /// It is done once, however often it is sent.
    Once,
    /// Doing it twice may be wrong.
    Never,
}

/// A client of a cluster.
#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    nodes: Vec<String>,
    /// How long to try.
    timeout: Duration,
}

/// What came of one try.
enum Try {
    Answer(Response),
    /// Nothing was sent.
    Unreachable,
    /// Nothing was done, and another node may do it, after a while if one is named.
    Elsewhere(Failure, Option<Duration>),
    /// Nobody knows whether it was done.
    Unknown(Failure),
}

impl Client {
    pub(crate) fn new(nodes: &[String], timeout: Duration) -> Result<Client, Failure> {
        let http = reqwest::Client::builder().connect_timeout(Duration::from_secs(2)).build();
        let http = http.map_err(|error| Failure::other(error.to_string()))?;
        let base = |node: &String| match node.contains("://") {
            true => node.trim_end_matches('/').to_string(),
            false => format!("http://{node}"),
        };
        let nodes = nodes.iter().filter(|node| !node.is_empty()).map(base).collect();
        Ok(Client { http, nodes, timeout })
    }

    /// The same client, which asks another node first.
    pub(crate) fn rotated(mut self, places: usize) -> Client {
        let places = places % self.nodes.len().max(1);
        self.nodes.rotate_left(places);
        self
    }

    pub(crate) fn get(&self, path: &str) -> impl Fn(&str) -> RequestBuilder + use<'_> {
        self.request(Method::GET, path)
    }

    /// A request, as it is made for each node.
    pub(crate) fn request(
        &self, method: Method, path: &str,
    ) -> impl Fn(&str) -> RequestBuilder + use<'_> {
        let path = path.to_string();
        move |node| self.http.request(method.clone(), format!("{node}{path}"))
    }

    /// Sends a request to one node after the other until one has done it, time is up, or it is of
    /// no use to go on. Whatever else than a success is a failure.
    pub(crate) async fn send(
        &self, repeat: Repeat, request: impl Fn(&str) -> RequestBuilder,
    ) -> Result<Response, Failure> {
        let deadline = Instant::now() + self.timeout;
        // The first is told if time is up, else the second: who could not be reached matters least.
        let (mut unknown, mut heard) = (None, None);
        for number in 1.. {
            let Some(node) = self.nodes.get((number - 1) % self.nodes.len().max(1)) else { break };
            let left = deadline.saturating_duration_since(Instant::now());
            // A node that hangs must not take the time of those that do not.
            let share = self.timeout / u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
            let patience = if repeat == Repeat::Never { left } else { left.min(share) };
            let (failure, wait) = match self.attempt(request(node), patience).await? {
                Try::Answer(response) => return Ok(response),
                Try::Unreachable => (unreachable(&self.nodes), None),
                Try::Elsewhere(failure, wait) => (heard.insert(failure).clone(), wait),
                Try::Unknown(failure) => match repeat {
                    Repeat::Harmless => (heard.insert(silent(node)).clone(), None),
                    Repeat::Once => (unknown.insert(failure).clone(), None),
                    Repeat::Never => return Err(failure),
                },
            };
            let all_asked = number % self.nodes.len() == 0;
            let wait = wait.unwrap_or(if all_asked { PAUSE } else { Duration::ZERO });
            if Instant::now() + wait >= deadline {
                return Err(unknown.or(heard).unwrap_or(failure));
            }
            log::debug!("try {number}: {failure}");
            tokio::time::sleep(wait).await;
        }
        Err(Failure::usage("there is no node to ask; name some with --nodes or KV_NODES"))
    }

    async fn attempt(&self, request: RequestBuilder, left: Duration) -> Result<Try, Failure> {
        // The first bytes of an answer must come in time; what follows may take long.
        let answer = match tokio::time::timeout(left, request.send()).await {
            Ok(answer) => answer,
            Err(_) => return Ok(Try::Unknown(no_answer("none came in time"))),
        };
        let response = match answer {
            Ok(response) => response,
            Err(error) if error.is_builder() => return Err(Failure::usage(error.to_string())),
            Err(error) if error.is_connect() => return Ok(Try::Unreachable),
            Err(error) => return Ok(Try::Unknown(no_answer(&error.to_string()))),
        };
        let status = response.status();
        if status.is_success() || status == reqwest::StatusCode::NOT_MODIFIED {
            return Ok(Try::Answer(response));
        }
        let wait =
            response.headers().get(RETRY_AFTER).and_then(|it| it.to_str().ok()?.parse().ok());
        let failure = match response.bytes().await {
            Ok(body) => Failure::refused(status.as_u16(), &body),
            Err(error) => Failure::refused(status.as_u16(), error.to_string().as_bytes()),
        };
        match (status.as_u16(), failure.kind) {
            (504, Kind::OutcomeUnknown) => Ok(Try::Unknown(failure)),
            (429, _) => Ok(Try::Elsewhere(failure, wait.map(Duration::from_secs))),
            (503, _) => Ok(Try::Elsewhere(failure, None)),
            _ => Err(failure),
        }
    }

    /// Sends a request that may be repeated, and reads the JSON that answers it.
    pub(crate) async fn ask<T: DeserializeOwned>(
        &self, repeat: Repeat, request: impl Fn(&str) -> RequestBuilder,
    ) -> Result<T, Failure> {
        let body = self.send(repeat, request).await?.bytes().await;
        let body = body.map_err(|error| no_answer(&error.to_string()))?;
        serde_json::from_slice(&body).map_err(|error| {
            Failure::other(format!("the node's answer is not understood: {error}; is it kv?"))
        })
    }
}

fn unreachable(nodes: &[String]) -> Failure {
    let message = format!(
        "none of {} could be reached; is `kv serve` or `kv demo` running there? Name nodes with \
         --nodes or KV_NODES",
        nodes.join(", ")
    );
    Failure::new(Kind::Unavailable, "unreachable", message)
}

fn silent(node: &str) -> Failure {
    let message = format!("{node} took the request, but gave no answer; try again, or elsewhere");
    Failure::new(Kind::Unavailable, "no_answer", message)
}

fn no_answer(reason: &str) -> Failure {
    let message = format!(
        "the request was sent, but its answer was lost ({reason}): it may or may not have been done. \
         Read to find out; with --once a write is sent again until that is known"
    );
    Failure::new(Kind::OutcomeUnknown, "outcome_unknown", message)
}
