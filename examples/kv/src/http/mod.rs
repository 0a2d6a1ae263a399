//! The node's side towards clients: REST, server-sent events, metrics and the page.
//!
//! To read: `request` is what clients send, `refusal` what they get if it cannot be done, `json` how
//! keys and values look; then `keys`, `transactions` and `watch` for the data, `operations` for the
//! cluster, `status` and `metrics` for those who look on.

pub mod json;
mod keys;
mod metrics;
mod operations;
mod refusal;
mod request;
mod status;
mod transactions;
mod watch;

use crate::node::Node;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post, put};
use refusal::Refusal;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch as latest};

/// Those who may watch at a node at once.
const MAX_WATCHERS: usize = 1024;
/// How much longer than a request may take the last ones are waited for when the server stops.
const GRACE: Duration = Duration::from_secs(2);

/// What all requests share.
pub(crate) struct Server {
    node: Node,
    history: status::History,
    requests: metrics::Requests,
    watchers: Arc<Semaphore>,
    room: request::Room,
    /// Asks other nodes how they are.
    client: reqwest::Client,
    stage: latest::Sender<Stage>,
}

/// How far a server is on its way to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// It serves.
    Open,
    /// It still serves, but hands leadership over.
    Stopping,
    /// It takes no more requests, and what would never end ends.
    Closed,
}

impl Server {
    fn new(node: Node) -> Arc<Server> {
        let room = request::Room::new(node.config().limits.bytes_in_flight);
        Arc::new(Server {
            node,
            room,
            history: status::History::default(),
            requests: metrics::Requests::default(),
            watchers: Arc::new(Semaphore::new(MAX_WATCHERS)),
            client: reqwest::Client::new(),
            stage: latest::Sender::new(Stage::Open),
        })
    }

    /// Whether clients should go elsewhere.
    fn is_ending(&self) -> bool {
        let status = self.node.status();
        let ended = status.failure.is_some() || status.role == "stopped";
        ended || *self.stage.borrow() > Stage::Open
    }

    /// Waits until no more requests are taken.
    fn stopped(&self) -> impl Future<Output = ()> + use<> {
        let mut stage = self.stage.subscribe();
        async move {
            // An error means that the server is gone, which is as good.
            let _ = stage.wait_for(|stage| *stage == Stage::Closed).await;
        }
    }
}

/// Serves clients of a node until `stop`. Then leadership is handed over if the node leads, requests
/// that are underway are answered, and the node is shut down.
///
/// # Errors
/// What the system says about the listener.
pub async fn serve(
    node: Node, listener: TcpListener, stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let server = Server::new(node.clone());
    tokio::spawn(status::remember(server.clone()));
    let closing = {
        let server = server.clone();
        async move {
            stop.await;
            server.stage.send_replace(Stage::Stopping);
            hand_over(&server.node).await;
            server.stage.send_replace(Stage::Closed);
        }
    };
    let serving = axum::serve(listener, routes(server.clone())).with_graceful_shutdown(closing);
    let patience = node.config().timing.request_timeout + GRACE;
    let overdue = async {
        server.stopped().await;
        tokio::time::sleep(patience).await;
    };
    let result = tokio::select! {
        result = serving => result,
        // Whoever has not received its answer by now does not want it.
        () = overdue => Ok(()),
    };
    server.stage.send_replace(Stage::Closed);
    node.shutdown().await;
    result
}

/// While requests are still taken, so that there is hardly a moment without a leader.
async fn hand_over(node: &Node) {
    let status = node.status();
    // If all stop at once there is nobody to take over, and nothing to wait for.
    let patience = node.config().timing.election_timeout.1 * 2;
    if status.role == "leader" && status.voters.len() > 1 {
        match tokio::time::timeout(patience, node.transfer(None)).await {
            Ok(Ok(leader)) => log::info!("node {leader} leads now"),
            Ok(Err(error)) => log::warn!("leadership was not handed over: {error:?}"),
            Err(_) => log::warn!("leadership was not handed over in {patience:?}"),
        }
    }
}

/// Everything that a node answers, as a service to run or to test. Seconds are not remembered for
/// the page unless it is served by [`serve`].
pub fn router(node: Node) -> Router {
    routes(Server::new(node))
}

fn routes(server: Arc<Server>) -> Router {
    let one_key = get(keys::get).put(keys::put).delete(keys::delete);
    Router::new()
        .route("/", get(page))
        .route("/kv", get(keys::list).put(keys::put).delete(keys::delete))
        .route("/kv/", one_key.clone())
        .route("/kv/{*key}", one_key)
        .route("/command", post(transactions::command))
        .route("/txn", post(transactions::transaction))
        .route("/sessions", post(transactions::open_session))
        .route("/watch", get(watch::watch))
        .route("/status", get(status::status))
        .route("/cluster/status", get(status::cluster))
        .route("/cluster/members", put(operations::change_members))
        .route("/cluster/leader", post(operations::transfer))
        .route("/snapshot", post(operations::snapshot))
        .route("/backup", get(operations::backup))
        .route("/metrics", get(metrics::metrics))
        .route("/healthz", get(status::health))
        .route("/readyz", get(status::readiness))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn(refuse_strangers))
        .layer(middleware::from_fn_with_state(server.clone(), metrics::count))
        .with_state(server)
}

async fn unknown_path(uri: Uri) -> Refusal {
    let message = format!(
        "There is nothing at {}. Keys are under /kv/, the page is at /, all else is in the README.",
        uri.path()
    );
    Refusal::new(StatusCode::NOT_FOUND, "unknown_path", message)
}

async fn wrong_method(method: Method, uri: Uri) -> Refusal {
    let message = format!("{method} is not for {}. The header Allow tells what is.", uri.path());
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "wrong_method", message)
}

/// Pages of others, in a browser that can reach this node, may not write here.
async fn refuse_strangers(request: Request, next: Next) -> Response {
    if is_foreign(&request) && !matches!(*request.method(), Method::GET | Method::HEAD) {
        let message =
            "A page from elsewhere may not write here. Send the request without a browser.";
        return Refusal::new(StatusCode::FORBIDDEN, "foreign_origin", message).into_response();
    }
    let mut response = next.run(request).await;
    // Values are what clients have put, so no browser may take them for a page of ours.
    let nosniff = HeaderValue::from_static("nosniff");
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    response
}

fn is_foreign(request: &Request) -> bool {
    let header = |name| request.headers().get(name).and_then(|it: &HeaderValue| it.to_str().ok());
    let host = header(header::HOST).unwrap_or_default();
    let own = |origin: &str| origin.split_once("://").is_some_and(|(_, it)| it == host);
    header(header::ORIGIN).is_some_and(|origin| !own(origin))
}

/// `GET /`: the page, which needs nothing from elsewhere and may load nothing from there.
async fn page(State(_): State<Arc<Server>>) -> impl IntoResponse {
    const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
                          img-src data:; connect-src http: https:; base-uri 'none'; \
                          form-action 'none'; frame-ancestors 'none'";
    let headers: [(HeaderName, HeaderValue); 2] = [
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    (headers, Html(include_str!("../page/index.html")))
}
