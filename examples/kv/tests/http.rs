//! Every answer of the REST interface, over real connections to nodes in this process.

mod common;
mod serving;

use common::PATIENCE;
use futures_util::StreamExt;
use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use serving::{Serving, send};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// Waits until something is so.
async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "{what} in time");
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_put_read_and_deleted_at_any_node() {
    let serving = Serving::start(3, |_| {}).await;
    let put = serving.put(0, "/kv/fruit", "apple").await.succeeded();
    let version = put.json()["revision"].as_u64().unwrap();
    assert_eq!(put.header("etag"), format!("\"{version}\""));
    for place in 0..3 {
        let got = serving.get(place, "/kv/fruit").await.succeeded();
        assert_eq!((got.body.as_slice(), got.header("etag")), (&b"apple"[..], put.header("etag")));
        assert_eq!(got.header("content-type"), "application/octet-stream");
        assert_eq!(got.header("x-content-type-options"), "nosniff");
    }
    let head = send(serving.request(1, Method::HEAD, "/kv/fruit")).await.succeeded();
    assert_eq!((head.header("content-length"), head.header("etag")), ("5", put.header("etag")));
    let held =
        serving.request(2, Method::GET, "/kv/fruit").header("if-none-match", put.header("etag"));
    let held = send(held).await;
    assert_eq!((held.status.as_u16(), held.body.len()), (304, 0));
    let deleted = serving.delete(1, "/kv/fruit").await.succeeded();
    assert!(deleted.json()["revision"].as_u64().unwrap() > version);
    for place in 0..3 {
        assert_eq!(serving.get(place, "/kv/fruit").await.is(404, "not_found")["key"], "fruit");
        serving.delete(place, "/kv/fruit").await.is(404, "not_found");
    }
    serving.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_may_be_any_text_and_values_any_bytes() {
    let serving = Serving::start(1, |_| {}).await;
    let bytes: Vec<u8> = (0..=255).collect();
    let paths = [
        ("a/b//c/", "/kv/a/b//c/"),
        ("a b%c?d#e", "/kv/a%20b%25c%3Fd%23e"),
        ("\u{e9}t\u{e9}\n", "/kv/%C3%A9t%C3%A9%0A"),
        ("../..", "/kv?key=..%2F.."),
        ("+", "/kv?key=%2B"),
        ("prefix=x", "/kv?key=prefix%3Dx"),
    ];
    for (key, path) in paths {
        let put = serving.request(0, Method::PUT, path).body(bytes.clone());
        send(put).await.succeeded();
        assert_eq!(serving.get(0, path).await.succeeded().body, bytes, "{key:?}");
        let listed = serving.client.get(format!("http://{}/kv", serving.address(0)));
        let listed = send(listed.query(&[("prefix", key)])).await.json();
        assert_eq!(listed["entries"][0]["key"], key);
        assert!(
            listed["entries"][0]["value_base64"].is_string()
                && listed["entries"][0]["value"].is_null()
        );
    }
    serving.put(0, "/kv/empty", "").await.succeeded();
    assert_eq!(serving.get(0, "/kv/empty").await.succeeded().body, b"");
    serving.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_may_expect_a_version() {
    let serving = Serving::start(3, |_| {}).await;
    let put = async |place, header: &'static str, value: &str| {
        let put = serving.request(place, Method::PUT, "/kv/fruit").header(header, value);
        send(put.body("pear")).await
    };
    assert_eq!(put(0, "if-match", "*").await.is(412, "condition_failed")["actual"], Value::Null);
    assert_eq!(
        put(1, "if-match", "\"7\"").await.is(412, "condition_failed")["actual"],
        Value::Null
    );
    let first = put(2, "if-none-match", "*").await.succeeded().json()["revision"].clone();
    let refused = put(0, "if-none-match", "*").await.is(412, "condition_failed");
    assert_eq!((&refused["actual"], &refused["key"]), (&first, &json!("fruit")));
    let second = put(1, "if-match", &format!("\"{first}\"")).await.succeeded();
    let second = second.json()["revision"].clone();
    assert_eq!(
        put(1, "if-match", &format!("{first}")).await.is(412, "condition_failed")["actual"],
        second
    );
    put(2, "if-match", "*").await.succeeded();
    let delete = serving.request(0, Method::DELETE, "/kv/fruit").header("if-match", "\"1\"");
    send(delete).await.is(412, "condition_failed");
    for (header, value) in [
        ("if-match", "W/\"1\""),
        ("if-match", "\"1\", \"2\""),
        ("if-match", "one"),
        ("if-match", ""),
        ("if-none-match", "\"1\""),
        ("if-match", "\"99999999999999999999\""),
    ] {
        put(0, header, value).await.is(400, "bad_condition");
    }
    let both = serving.request(0, Method::PUT, "/kv/fruit").header("if-match", "*");
    send(both.header("if-none-match", "*")).await.is(400, "bad_condition");
    let twice = serving.request(0, Method::PUT, "/kv/fruit").header("if-match", "\"1\"");
    send(twice.header("if-match", "\"2\"")).await.is(400, "bad_header");
    serving.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_come_in_pages() {
    let serving = Serving::start(1, |config| config.limits.value_bytes = 1024 * 1024).await;
    for number in 0..25 {
        serving
            .put(0, &format!("/kv/page/{number:02}"), &format!("value {number}"))
            .await
            .succeeded();
    }
    serving.put(0, "/kv/other", "").await.succeeded();
    let (mut keys, mut after, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let path = format!("/kv?prefix=page/&limit=10&after={after}");
        let page = serving.get(0, &path).await.succeeded().json();
        assert_eq!(page["revision"], 26);
        let entries = page["entries"].as_array().unwrap();
        keys.extend(entries.iter().map(|entry| entry["key"].as_str().unwrap().to_string()));
        pages += 1;
        match page["next"].as_str() {
            Some(next) => after = next.to_string(),
            None => break,
        }
    }
    let want: Vec<_> = (0..25).map(|number| format!("page/{number:02}")).collect();
    assert_eq!((keys, pages), (want, 3));
    // No page is larger than a client may expect, whatever it asks for.
    let large = "x".repeat(1024 * 1024);
    for number in 0..10 {
        serving.put(0, &format!("/kv/large/{number}"), &large).await.succeeded();
    }
    let page = serving.get(0, "/kv?prefix=large/&limit=1000").await.succeeded();
    assert!(page.body.len() < 9 * 1024 * 1024);
    let next = page.json()["next"].as_str().unwrap().to_string();
    let rest = serving.get(0, &format!("/kv?prefix=large/&after={next}")).await.json();
    let count = |page: &Value| page["entries"].as_array().unwrap().len();
    assert_eq!((count(&page.json()) + count(&rest), &rest["next"]), (10, &Value::Null));
    for query in [
        "limit=0",
        "limit=1001",
        "limit=many",
        "limit=-1",
        "prefixx=a",
        "consistency=eventual",
        "key=a&prefix=b",
        "prefix=a&prefix=b",
    ] {
        serving.get(0, &format!("/kv?{query}")).await.is(400, "bad_query");
    }
    serving.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_do_all_or_nothing() {
    let serving = Serving::start(3, |_| {}).await;
    let command = serving.post(1, "/command", r#"{"key":"tea","value":"green"}"#).await.succeeded();
    let version = command.json()["revision"].as_u64().unwrap();
    let body = json!({
        "conditions": [{ "key": "tea", "version": version }, { "key": "milk", "exists": false }],
        "operations": [
            { "put": "milk", "value": "cold" }, { "put": "raw", "value_base64": "/wA=" },
            { "get": "milk" }, { "get": "raw" }, { "delete": "tea" }, { "delete": "sugar" },
            { "get": "tea" },
        ],
    });
    let done = serving.post(2, "/txn", &body.to_string()).await.succeeded().json();
    let revision = done["revision"].clone();
    assert_eq!(
        done["results"],
        json!([
            { "operation": "put" }, { "operation": "put" },
            { "operation": "get", "version": revision, "value": "cold" },
            { "operation": "get", "version": revision, "value_base64": "/wA=" },
            { "operation": "delete", "existed": true }, { "operation": "delete", "existed": false },
            { "operation": "get", "version": null },
        ])
    );
    let again = serving.post(0, "/txn", &body.to_string()).await.is(412, "condition_failed");
    assert_eq!((&again["key"], &again["actual"]), (&json!("tea"), &Value::Null));
    assert_eq!(serving.get(0, "/kv/raw").await.body, [255, 0]);
    for (body, code) in [
        ("", "bad_json"),
        ("[]", "bad_json"),
        ("{", "bad_json"),
        (r#"{"operations":5}"#, "bad_json"),
        (r#"{"operations":[{"put":"a","value":1}]}"#, "bad_json"),
        (r#"{"operations":[{"put":"a","valeu":"b"}]}"#, "bad_json"),
        (r#"{"operations":[]}"#, "invalid"),
        (r#"{"operations":[{"put":"","value":"b"}]}"#, "invalid"),
        (r#"{"operations":[{}]}"#, "bad_transaction"),
        (r#"{"operations":[{"put":"a"}]}"#, "bad_transaction"),
        (r#"{"operations":[{"put":"a","value":"b","value_base64":"YQ=="}]}"#, "bad_transaction"),
        (r#"{"operations":[{"put":"a","value_base64":"~"}]}"#, "bad_transaction"),
        (r#"{"operations":[{"get":"a","value":"b"}]}"#, "bad_transaction"),
        (r#"{"operations":[{"get":"a","delete":"a"}]}"#, "bad_transaction"),
        (r#"{"conditions":[{"key":"a"}],"operations":[{"get":"a"}]}"#, "bad_transaction"),
        (
            r#"{"conditions":[{"key":"a","exists":true,"version":1}],"operations":[{"get":"a"}]}"#,
            "bad_transaction",
        ),
    ] {
        serving.post(0, "/txn", body).await.is(400, code);
    }
    for body in
        ["", r#"{"key":"a"}"#, r#"{"key":"a","value":5}"#, r#"{"key":"a","value":"b","ttl":1}"#]
    {
        serving.post(0, "/command", body).await.is(400, "bad_json");
    }
    serving.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_a_session_are_done_once() {
    let serving = Serving::start(3, |_| {}).await;
    let opened = serving.post(1, "/sessions", "").await.succeeded();
    assert_eq!(opened.status, 201);
    let client = opened.json()["client"].as_u64().unwrap();
    let write = async |place, path: &str, client: u64, sequence: u64| {
        let put = serving.request(place, Method::PUT, path).header("kv-client", client);
        send(put.header("kv-sequence", sequence).body("x")).await
    };
    let first = write(0, "/kv/once", client, 1).await.succeeded().json();
    serving.delete(1, "/kv/once").await.succeeded();
    // The same request again, at every node: it is answered, and changes nothing.
    for place in 0..3 {
        assert_eq!(write(place, "/kv/once", client, 1).await.succeeded().json(), first);
        serving.get(place, "/kv/once").await.is(404, "not_found");
    }
    write(2, "/kv/once", client, 5).await.succeeded();
    assert_eq!(write(0, "/kv/once", client, 4).await.is(409, "stale_sequence")["latest"], 5);
    write(0, "/kv/once", client + 1_000_000, 1).await.is(410, "session_expired");
    // A condition that failed once stays failed.
    let swap = || {
        let put = serving.request(0, Method::PUT, "/kv/swap").header("kv-client", client);
        send(put.header("kv-sequence", 6).header("if-match", "*"))
    };
    swap().await.is(412, "condition_failed");
    serving.put(0, "/kv/swap", "").await.succeeded();
    swap().await.is(412, "condition_failed");
    for headers in [
        vec![("kv-client", "1")],
        vec![("kv-sequence", "1")],
        vec![("kv-client", "1"), ("kv-sequence", "0")],
    ] {
        let put =
            headers.iter().fold(serving.request(0, Method::PUT, "/kv/a"), |it, (name, value)| {
                it.header(*name, *value)
            });
        send(put).await.is(400, "bad_session");
    }
    let bad = serving
        .request(0, Method::PUT, "/kv/a")
        .header("kv-client", "me")
        .header("kv-sequence", "1");
    send(bad).await.is(400, "bad_header");
    serving.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_refused_with_a_reason() {
    let serving = Serving::start(1, |config| config.limits.value_bytes = 1000).await;
    serving.put(0, "/kv/fruit", &"x".repeat(1000)).await.succeeded();
    let large = serving.put(0, "/kv/fruit", &"x".repeat(1001)).await.is(413, "too_large");
    assert_eq!(large["limit"], 1000);
    let body = json!({ "key": "a", "value": "x".repeat(1001) }).to_string();
    serving.post(0, "/command", &body).await.is(413, "too_large");
    serving.put(0, &format!("/kv/{}", "k".repeat(1025)), "").await.is(413, "too_large");
    let steps: Vec<_> = (0..200).map(|_| json!({ "get": "a" })).collect();
    serving.post(0, "/txn", &json!({ "operations": steps }).to_string()).await.is(413, "too_large");
    let huge = " ".repeat(13 * 1024 * 1024);
    serving.post(0, "/txn", &huge).await.is(413, "too_large");
    serving.put(0, "/kv/", "x").await.is(400, "invalid");
    serving.put(0, "/kv?key=", "x").await.is(400, "invalid");
    serving.put(0, "/kv", "x").await.is(400, "bad_query");
    serving.put(0, "/kv/%FF", "x").await.is(400, "bad_key");
    serving.get(0, "/kv/%C3%28").await.is(400, "bad_key");
    serving.put(0, "/kv/fruit?consistency=stale", "x").await.is(400, "bad_query");
    serving.get(0, "/kv/fruit?consistency=eventual").await.is(400, "bad_query");
    serving.get(0, "/watch?from=now").await.is(400, "bad_query");
    serving.get(0, "/status?sinse=1").await.is(400, "bad_query");
    for path in ["/nothing", "/KV/fruit", "/kv2", "/cluster", "/status/"] {
        serving.get(0, path).await.is(404, "unknown_path");
    }
    let routes = [
        ("POST", "/kv/fruit", "GET,HEAD,PUT,DELETE"),
        ("PATCH", "/kv", "GET,HEAD,PUT,DELETE"),
        ("GET", "/txn", "POST"),
        ("PUT", "/command", "POST"),
        ("DELETE", "/sessions", "POST"),
        ("POST", "/watch", "GET,HEAD"),
        ("PUT", "/status", "GET,HEAD"),
        ("POST", "/", "GET,HEAD"),
        ("GET", "/cluster/members", "PUT"),
        ("GET", "/cluster/leader", "POST"),
        ("GET", "/snapshot", "POST"),
        ("POST", "/backup", "GET,HEAD"),
        ("POST", "/metrics", "GET,HEAD"),
        ("OPTIONS", "/healthz", "GET,HEAD"),
        ("BREW", "/readyz", "GET,HEAD"),
    ];
    for (method, path, allowed) in routes {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let answer = send(serving.request(0, method, path)).await;
        answer.is(405, "wrong_method");
        assert_eq!(answer.header("allow"), allowed, "{path}");
    }
    serving.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_from_elsewhere_may_not_write() {
    let serving = Serving::start(1, |_| {}).await;
    let own = format!("http://{}", serving.address(0));
    for (origin, allowed) in [("http://evil.example", false), ("null", false), (own.as_str(), true)]
    {
        let post = serving.request(0, Method::POST, "/command").header("origin", origin);
        let answer = send(post.body(r#"{"key":"a","value":"b"}"#)).await;
        match allowed {
            true => drop(answer.succeeded()),
            false => drop(answer.is(403, "foreign_origin")),
        }
        let status = serving.request(0, Method::GET, "/cluster/status").header("origin", origin);
        let shared = send(status).await.succeeded();
        assert_eq!(shared.header("access-control-allow-origin"), if allowed { origin } else { "" });
    }
    serving.end().await;
}

/// Patient enough that a leader whose peers are dead goes on to believe that it leads.
fn stubborn(config: &mut kv::config::Config) {
    config.timing.election_timeout = (Duration::from_secs(2), Duration::from_millis(2500));
    config.timing.request_timeout = Duration::from_secs(3);
    config.limits.writes_in_flight = 1;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_nothing_is_claimed() {
    let mut serving = Serving::start(3, stubborn).await;
    let leader = serving.cluster.leader().await;
    serving.put(leader, "/kv/fruit", "apple").await.succeeded();
    let others = (0..3).filter(|place| *place != leader).collect::<Vec<_>>();
    for place in others {
        serving.kill(place).await;
    }
    let in_flight = || serving.cluster.node(leader).counters().writes_in_flight;
    let first = serving.put(leader, "/kv/fruit", "pear");
    let second = async {
        until("a write underway", async || in_flight() == 1).await;
        let busy = serving.put(leader, "/kv/fruit", "plum").await;
        busy.is(429, "busy");
        busy
    };
    let (unknown, busy) = tokio::join!(first, second);
    assert_eq!(busy.header("retry-after"), "1");
    let message = unknown.is(504, "outcome_unknown")["message"].to_string();
    assert!(message.contains("/sessions"), "{message}");
    // By now it has given up leading. Each of these waits for another leader, all at once.
    let bodiless =
        ["/kv/fruit", "/kv/fruit?consistency=lease", "/kv?prefix=f", "/backup", "/readyz"];
    let asked = bodiless.map(|path| serving.request(leader, Method::GET, path)).into_iter();
    let changing = ["/sessions", "/cluster/leader"];
    let asked = asked.chain(changing.map(|path| serving.request(leader, Method::POST, path)));
    let put = serving.request(leader, Method::PUT, "/kv/fruit").body("plum");
    for answer in join_all(asked.chain([put]).map(send)).await {
        answer.is(503, "no_leader");
    }
    let put = serving.put(leader, "/kv/fruit", "plum").await;
    put.is(503, "no_leader");
    assert_eq!(put.header("retry-after"), "1");
    // What this node knows, it tells those who ask for no more.
    assert_eq!(serving.get(leader, "/kv/fruit?consistency=stale").await.succeeded().body, b"apple");
    serving.get(leader, "/healthz").await.succeeded();
    let cluster = serving.get(leader, "/cluster/status").await.succeeded().json();
    let told = cluster["nodes"].as_array().unwrap();
    let silent = told.iter().filter(|node| node["status"].is_null() && node["error"].is_string());
    assert_eq!((told.len(), silent.count()), (3, 2));
    // One more makes a majority, and everything goes on.
    serving.restart((leader + 1) % 3).await;
    until("a write", async || serving.put(leader, "/kv/fruit", "cherry").await.status == 200).await;
    assert_eq!(serving.get(leader, "/kv/fruit").await.succeeded().body, b"cherry");
    serving.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_reads_are_told_to_wait() {
    let mut serving = Serving::start(3, |config| {
        stubborn(config);
        config.limits.reads_in_flight = 1;
    })
    .await;
    let leader = serving.cluster.leader().await;
    for place in (0..3).filter(|place| *place != leader) {
        serving.kill(place).await;
    }
    // Reads wait for a majority that is not there; of two, one must find the other waiting.
    let (one, two) = tokio::join!(serving.get(leader, "/kv/a"), serving.get(leader, "/kv/a"));
    let mut statuses = [one.status.as_u16(), two.status.as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [429, 503]);
    serving.end().await;
}

/// The events of `/watch`, as they come.
struct Events {
    pieces: futures_util::stream::BoxStream<'static, reqwest::Result<bytes::Bytes>>,
    text: String,
}

impl Events {
    async fn open(request: reqwest::RequestBuilder) -> Events {
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Events { pieces: response.bytes_stream().boxed(), text: String::new() }
    }

    /// The next event: its id and data. None at the end.
    async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let field = |name: &str| {
                    let line = event.lines().find_map(|line| line.strip_prefix(name));
                    line.unwrap_or_default().to_string()
                };
                let (id, data) = (field("id: "), field("data: "));
                self.text = rest.to_string();
                match data.is_empty() {
                    true => continue, // Only to keep the connection.
                    false => return Some((id, serde_json::from_str(&data).unwrap())),
                }
            }
            let piece = timeout(PATIENCE, self.pieces.next()).await.expect("an event in time")?;
            self.text += std::str::from_utf8(&piece.ok()?).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_told_as_they_happen() {
    let mut serving = Serving::start(3, |config| config.limits.changes_kept = 20).await;
    let mut all = Events::open(serving.request(0, Method::GET, "/watch")).await;
    let mut some = Events::open(serving.request(1, Method::GET, "/watch?prefix=b")).await;
    let first =
        serving.put(2, "/kv/a", "one").await.succeeded().json()["revision"].as_u64().unwrap();
    let body = json!({ "operations": [{ "put": "b", "value_base64": "/w==" }, { "delete": "a" }] });
    serving.post(2, "/txn", &body.to_string()).await.succeeded();
    let put =
        json!({ "revision": first, "changes": [{ "key": "a", "deleted": false, "value": "one" }] });
    let (b, a) = (
        json!({ "key": "b", "deleted": false, "value_base64": "/w==" }),
        json!({ "key": "a", "deleted": true }),
    );
    let both = json!({ "revision": first + 1, "changes": [b, a] });
    let id = |revision: u64| revision.to_string();
    assert_eq!(all.next().await, Some((id(first), put.clone())));
    assert_eq!(all.next().await, Some((id(first + 1), both.clone())));
    let only = json!({ "revision": first + 1, "changes": [b] });
    assert_eq!(some.next().await, Some((id(first + 1), only)));
    // From an earlier revision on, or from where a browser was.
    until("both writes at node 0", async || serving.cluster.node(0).status().revision > first)
        .await;
    let mut past =
        Events::open(serving.request(0, Method::GET, &format!("/watch?from={first}"))).await;
    assert_eq!(past.next().await, Some((id(first), put)));
    let again = serving.request(0, Method::GET, "/watch?from=1").header("last-event-id", first);
    assert_eq!(Events::open(again).await.next().await, Some((id(first + 1), both)));
    for number in 0..25 {
        serving.put(0, &format!("/kv/{number}"), "").await.succeeded();
    }
    let latest = first + 26;
    until("all writes at node 0", async || serving.cluster.node(0).status().revision == latest)
        .await;
    assert!(
        serving.get(0, "/watch?from=1").await.is(410, "forgotten")["oldest"].as_u64().unwrap() > 1
    );
    // A server that stops does not wait for those who watch for ever.
    for _ in 0..25 {
        all.next().await.unwrap();
    }
    let (end, ()) = tokio::join!(all.next(), serving.stop(0));
    assert_eq!(end, None);
    serving.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_are_added_and_removed() {
    let mut serving = Serving::start(4, |config| config.nodes[3].joining = true).await;
    for number in 0..50 {
        serving.put(0, &format!("/kv/{number}"), "x").await.succeeded();
    }
    serving.restart(3).await;
    serving.get(3, "/readyz").await.is(503, "not_a_member");
    let change = async |place, body: Value| {
        let put = serving.request(place, Method::PUT, "/cluster/members").body(body.to_string());
        send(put).await
    };
    let steps = |answer: serving::Answer| -> Vec<Value> {
        let text = String::from_utf8(answer.succeeded().body).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    // By names and ids, at any node.
    let added = steps(change(1, json!({ "voters": ["node1", 2, "node3", "node4"] })).await);
    assert_eq!(added.last().unwrap()["step"], "done");
    assert_eq!(added.last().unwrap()["voters"], json!([1, 2, 3, 4]));
    assert!(added.iter().any(|step| step["step"] == "learners_added"), "{added:?}");
    assert_eq!(serving.get(3, "/kv/49").await.succeeded().body, b"x");
    until("a new node that is ready", async || serving.get(3, "/readyz").await.status == 200).await;
    let removed = steps(change(2, json!({ "voters": [2, 3, 4], "learners": [1] })).await);
    assert_eq!(removed.last().unwrap()["learners"], json!([1]));
    serving.post(3, "/cluster/leader", r#"{"to":"node1"}"#).await.is(409, "not_a_voter");
    change(0, json!({ "voters": ["node9"] })).await.is(400, "unknown_node");
    change(0, json!({ "voters": [9] })).await.is(400, "unknown_node");
    change(0, json!({ "voters": [{}] })).await.is(400, "unknown_node");
    change(0, json!({ "voters": [] })).await.is(400, "no_voters");
    change(0, json!({ "members": [] })).await.is(400, "bad_json");
    change(0, json!({ "voters": [2], "learners": [2] })).await.is(409, "members_not_changed");
    serving.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_is_handed_over() {
    let serving = Serving::start(3, |_| {}).await;
    let leader = serving.cluster.leader().await;
    let to = (leader + 1) % 3;
    let body = json!({ "to": format!("node{}", to + 1) });
    let asked = (leader + 2) % 3;
    let answer = serving.post(asked, "/cluster/leader", &body.to_string()).await.succeeded().json();
    assert_eq!((&answer["leader"], &answer["id"]), (&body["to"], &json!(to + 1)));
    let answer = serving.post(asked, "/cluster/leader", "").await.succeeded().json();
    assert_ne!(answer["leader"], body["to"]);
    serving.post(0, "/cluster/leader", r#"{"to":"nobody"}"#).await.is(400, "unknown_node");
    serving.post(0, "/cluster/leader", "now").await.is(400, "bad_json");
    serving.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn backups_begin_new_clusters() {
    let serving = Serving::start(3, |_| {}).await;
    for number in 0..100 {
        serving.put(number % 3, &format!("/kv/{number}"), "x").await.succeeded();
    }
    let client = serving.post(0, "/sessions", "").await.json()["client"].as_u64().unwrap();
    let once = |serving: &Serving| {
        let put = serving.request(0, Method::PUT, "/kv/once").header("kv-client", client);
        send(put.header("kv-sequence", 1))
    };
    let written = once(&serving).await.succeeded().json();
    // The leader has applied what it has acknowledged; others may be a moment behind.
    let leader = serving.cluster.leader().await;
    let snapshot = serving.post(leader, "/snapshot", "").await.succeeded();
    assert_eq!((snapshot.status.as_u16(), &snapshot.json()["keys"]), (201, &json!(101)));
    // Where there is a file there can be no directory.
    let name = &serving.cluster.config.nodes[0].name;
    let backups = serving.cluster.config.data_directory.join(name).join("backups");
    if leader == 0 {
        std::fs::remove_dir_all(&backups).unwrap();
    }
    std::fs::write(&backups, "").unwrap();
    serving.post(0, "/snapshot", "").await.is(507, "snapshot_failed");
    let backup = serving.get(1, "/backup").await.succeeded();
    assert_eq!(backup.header("kv-revision"), "101");
    serving.end().await;
    let restored = Serving::start(3, |config| {
        for node in &config.nodes {
            let report =
                kv::node::Node::restore(config, &node.name, backup.body.as_slice()).unwrap();
            assert_eq!((report.revision, report.keys), (101, 101));
        }
    });
    let restored = restored.await;
    assert_eq!(restored.get(2, "/kv/99").await.succeeded().header("etag"), "\"100\"");
    // Even what a client was doing when the backup was made is still done once.
    assert_eq!(once(&restored).await.succeeded().json(), written);
    restored.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_tells_how_it_is() {
    let serving = Serving::start(3, |_| {}).await;
    let leader = serving.cluster.leader().await;
    serving.put(leader, "/kv/a", "b").await.succeeded();
    let status = serving.get(leader, "/status").await.succeeded().json();
    assert_eq!((&status["role"], &status["voters"]), (&json!("leader"), &json!([1, 2, 3])));
    assert_eq!(status["peers"].as_array().unwrap().len(), 2);
    assert!(status["history"].is_null());
    until("a second of history", async || {
        let status = serving.get(leader, "/status?since=0").await.succeeded().json();
        let history = status["history"].as_array().unwrap();
        history
            .last()
            .is_some_and(|second| second["behind"].as_object().is_some_and(|it| it.len() == 2))
    })
    .await;
    let cluster = serving.get((leader + 1) % 3, "/cluster/status?since=0").await.succeeded().json();
    assert_eq!(cluster["asked"], format!("node{}", (leader + 1) % 3 + 1));
    for node in cluster["nodes"].as_array().unwrap() {
        assert_eq!(node["name"], node["status"]["name"]);
        assert!(node["status"]["history"].is_array());
    }
    until("a node that is ready", async || serving.get(0, "/readyz").await.status == 200).await;
    let ready = serving.get(0, "/readyz").await.succeeded().json();
    assert_eq!(ready["leader"], format!("node{}", leader + 1));
    serving.get(0, "/healthz").await.succeeded();
    serving.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_has_ended_sends_clients_elsewhere() {
    let serving = Serving::start(1, |_| {}).await;
    serving.put(0, "/kv/a", "b").await.succeeded();
    serving.cluster.node(0).halt().await;
    for path in ["/kv/a", "/kv", "/watch", "/backup", "/readyz"] {
        serving.get(0, path).await.is(503, "shutting_down");
    }
    let put = serving.put(0, "/kv/a", "c").await;
    put.is(503, "shutting_down");
    assert_eq!(put.header("retry-after"), "1");
    for path in ["/sessions", "/cluster/leader"] {
        serving.post(0, path, "").await.is(503, "shutting_down");
    }
    assert_eq!(serving.get(0, "/kv/a?consistency=stale").await.succeeded().body, b"b");
    assert_eq!(serving.get(0, "/status").await.succeeded().json()["role"], "stopped");
    serving.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_what_prometheus_reads() {
    let serving = Serving::start(3, |_| {}).await;
    let leader = serving.cluster.leader().await;
    for _ in 0..5 {
        serving.put(leader, "/kv/a", "b").await.succeeded();
    }
    serving.get(leader, "/kv/none").await.is(404, "not_found");
    send(serving.request(leader, Method::from_bytes(b"BREW").unwrap(), "/tea")).await;
    let answer = serving.get(leader, "/metrics").await.succeeded();
    assert!(answer.header("content-type").starts_with("text/plain; version=0.0.4"));
    let text = String::from_utf8(answer.body).unwrap();
    let sample = regex::Regex::new(
        r#"^([a-z_]+?)(_bucket|_sum|_count)?(\{[a-z]+="[^"\n]*"(,[a-z]+="[^"\n]*")*\})? [0-9.e+-]+$"#,
    ).unwrap();
    let (mut family, mut kind, mut seen) = (String::new(), String::new(), Vec::new());
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            family = help.split(' ').next().unwrap().to_string();
            assert!(!seen.contains(&family), "{family} comes twice");
            seen.push(family.clone());
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, of) = rest.split_once(' ').unwrap();
            assert_eq!(name, family);
            kind = of.to_string();
        } else {
            let found = sample.captures(line).unwrap_or_else(|| panic!("no sample: {line}"));
            let base = if kind == "histogram" {
                found[1].to_string()
            } else {
                line.split(['{', ' ']).next().unwrap().to_string()
            };
            assert_eq!(base, family, "{line}");
            assert_eq!(kind == "counter", family.ends_with("_total"), "{line}");
        }
    }
    for line in [
        "kv_is_leader 1",
        "kv_writes_total 5",
        "kv_voters 3",
        r#"kv_http_request_seconds_count{route="/kv/{*key}",method="PUT",status="200"} 5"#,
        r#"kv_http_request_seconds_count{route="/kv/{*key}",method="GET",status="404"} 1"#,
        r#"kv_http_request_seconds_count{route="unknown",method="other",status="404"} 1"#,
    ] {
        assert!(text.lines().any(|it| it == line), "{line} in {text}");
    }
    assert!(text.contains("kv_peer_lag{peer=\"node"));
    serving.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_stops_hands_over_and_answers_what_is_underway() {
    let mut serving = Serving::start(3, |_| {}).await;
    let leader = serving.cluster.leader().await;
    let url = format!("http://{}/kv/", serving.address(leader));
    let client = serving.client.clone();
    // Writes until the node takes no more connections. None that it took may be left in the dark.
    let writer = tokio::spawn(async move {
        let mut done = 0;
        loop {
            match client.put(format!("{url}{done}")).send().await {
                Ok(answer) if answer.status() == 200 => done += 1,
                Ok(answer) => panic!("{}: {}", answer.status(), answer.text().await.unwrap()),
                Err(error) if error.is_connect() => return done,
                Err(error) => panic!("{error:?}"),
            }
        }
    });
    until("some writes", async || serving.cluster.node(leader).counters().writes > 10).await;
    serving.stop(leader).await;
    let done = timeout(PATIENCE, writer).await.unwrap().unwrap();
    assert!(done > 0);
    let other = (leader + 1) % 3;
    let next = serving.cluster.leader().await;
    assert_ne!(next, leader);
    for number in [0, done - 1] {
        serving.get(other, &format!("/kv/{number}")).await.succeeded();
    }
    serving.end().await;
}
