//! Clusters that serve clients over HTTP, and a client that looks at every answer closely.
#![allow(dead_code)] // Not every test uses everything.

use crate::common::{Cluster, PATIENCE};
use kv::config::Config;
use kv::http;
use kv::node::Node;
use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::Value;
use std::io;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// A cluster whose running nodes all serve clients.
pub(crate) struct Serving {
    pub(crate) cluster: Cluster,
    pub(crate) client: reqwest::Client,
    servers: Vec<Option<Server>>,
}

struct Server {
    stop: oneshot::Sender<()>,
    task: JoinHandle<io::Result<()>>,
}

impl Serving {
    pub(crate) async fn start(nodes: usize, change: impl FnOnce(&mut Config)) -> Serving {
        let cluster = Cluster::start_with(nodes, |config| {
            // A machine that is busy should not have elections in the midst of a test.
            config.timing.election_timeout =
                (Duration::from_millis(1000), Duration::from_millis(1500));
            change(config);
        });
        let cluster = cluster.await;
        let servers = cluster.nodes.iter().map(|_| None).collect();
        let mut serving = Serving { cluster, servers, client: reqwest::Client::new() };
        for place in 0..serving.servers.len() {
            if serving.cluster.nodes[place].is_some() {
                serving.serve(place).await;
            }
        }
        serving.cluster.leader().await;
        serving
    }

    /// Serves clients of a node that runs.
    pub(crate) async fn serve(&mut self, place: usize) {
        let listener = TcpListener::bind(&self.cluster.config.nodes[place].http).await.unwrap();
        let (stop, stopped) = oneshot::channel();
        let stopped = async move { drop(stopped.await) };
        let node: Node = self.cluster.node(place).clone();
        let task = tokio::spawn(http::serve(node, listener, stopped));
        self.servers[place] = Some(Server { stop, task });
    }

    /// Starts a node that does not run, and serves its clients.
    pub(crate) async fn restart(&mut self, place: usize) {
        self.cluster.restart(place).await;
        self.serve(place).await;
    }

    /// Asks a server to stop, as a signal would.
    pub(crate) fn ask_to_stop(&mut self, place: usize) -> JoinHandle<io::Result<()>> {
        let server = self.servers[place].take().expect("a server that runs");
        server.stop.send(()).unwrap();
        server.task
    }

    /// Stops a server and waits for it.
    pub(crate) async fn stop(&mut self, place: usize) {
        let task = self.ask_to_stop(place);
        timeout(PATIENCE, task).await.expect("an end in time").unwrap().unwrap();
        self.cluster.nodes[place] = None;
    }

    /// Stops a node as a crash would; its clients are refused as those of a dead process.
    pub(crate) async fn kill(&mut self, place: usize) {
        let server = self.servers[place].take().expect("a server that runs");
        server.task.abort();
        let _ = server.task.await;
        self.cluster.kill(place).await;
    }

    /// Ends everything, all nodes at once.
    pub(crate) async fn end(mut self) {
        for place in 0..self.servers.len() {
            if self.servers[place].is_some() {
                self.kill(place).await;
            }
        }
    }

    pub(crate) fn address(&self, place: usize) -> String {
        self.cluster.config.nodes[place].http.clone()
    }

    pub(crate) fn addresses(&self) -> String {
        let all = self.cluster.config.nodes.iter().map(|node| node.http.clone());
        all.collect::<Vec<_>>().join(",")
    }

    pub(crate) fn request(&self, place: usize, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("http://{}{path}", self.address(place)))
    }

    pub(crate) async fn get(&self, place: usize, path: &str) -> Answer {
        send(self.request(place, Method::GET, path)).await
    }

    pub(crate) async fn put(&self, place: usize, path: &str, value: &str) -> Answer {
        send(self.request(place, Method::PUT, path).body(value.to_string())).await
    }

    pub(crate) async fn delete(&self, place: usize, path: &str) -> Answer {
        send(self.request(place, Method::DELETE, path)).await
    }

    pub(crate) async fn post(&self, place: usize, path: &str, body: &str) -> Answer {
        send(self.request(place, Method::POST, path).body(body.to_string())).await
    }
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

pub(crate) async fn send(request: RequestBuilder) -> Answer {
    try_send(request).await.expect("an answer")
}

/// The answer, if it is heard: a server that refuses a request may close the connection while the
/// client still writes to it.
pub(crate) async fn try_send(request: RequestBuilder) -> reqwest::Result<Answer> {
    let whole = async {
        let response = request.send().await?;
        let (status, headers) = (response.status(), response.headers().clone());
        Ok(Answer { status, headers, body: response.bytes().await?.to_vec() })
    };
    let answer: Answer = timeout(PATIENCE, whole).await.expect("an answer in time")?;
    if answer.status.as_u16() >= 400 && !answer.body.is_empty() {
        answer.check_refusal();
    }
    Ok(answer)
}

impl Answer {
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        let text = String::from_utf8_lossy(&self.body);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Every refusal has a code for programs, and a sentence for people.
    fn check_refusal(&self) {
        let body = self.json();
        let (code, message) = (body["error"].as_str().unwrap(), body["message"].as_str().unwrap());
        assert!(code.bytes().all(|it| it.is_ascii_lowercase() || it == b'_'), "{code}");
        assert!(message.contains(' ') && message.ends_with('.'), "{message}");
        assert!(message.starts_with(char::is_uppercase), "{message}");
    }

    /// It must be this refusal.
    #[track_caller]
    pub(crate) fn is(&self, status: u16, code: &str) -> Value {
        assert_eq!(
            (self.status.as_u16(), self.json()["error"].as_str()),
            (status, Some(code)),
            "{}",
            String::from_utf8_lossy(&self.body)
        );
        self.json()
    }

    /// It must be a success.
    #[track_caller]
    pub(crate) fn succeeded(self) -> Answer {
        assert!(
            self.status.is_success(),
            "{}: {}",
            self.status,
            String::from_utf8_lossy(&self.body)
        );
        self
    }
}
