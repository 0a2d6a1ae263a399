//! Requests that nobody should send: whatever it is, the answer is no failure of the server's, and
//! the next client finds it as it was.

mod common;
mod serving;

use proptest::prelude::*;
use reqwest::Method;
use serde_json::Value;
use serving::{Serving, try_send};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::LazyLock;
use std::time::Duration;
use tokio::runtime::Runtime;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// One node for all, which must survive them all.
static NODE: LazyLock<(Runtime, Serving)> = LazyLock::new(|| {
    let runtime = Runtime::new().unwrap();
    let serving = runtime.block_on(Serving::start(1, |config| {
        config.limits.value_bytes = 4096;
        // None of what is tried here may wait for long.
        config.timing.request_timeout = Duration::from_secs(10);
    }));
    (runtime, serving)
});

/// Sends bytes, perhaps ends there, and returns what comes back; less if the connection breaks.
fn exchange(request: &[u8], end: bool) -> Vec<u8> {
    let mut stream = TcpStream::connect(NODE.1.address(0)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // The server may have heard enough before everything is sent.
    let _ = stream.write_all(request);
    if end {
        let _ = stream.shutdown(Shutdown::Write);
    }
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        let broken = matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe);
        assert!(broken, "no end of the answer: {error}");
    }
    answer
}

/// Status, headers and body of an answer that is not chunked.
fn parse(answer: &[u8]) -> (u16, String, Vec<u8>) {
    let end = answer.windows(4).position(|it| it == b"\r\n\r\n").expect("headers") + 4;
    let head = String::from_utf8(answer[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_ascii_lowercase(), answer[end..].to_vec())
}

/// A request that is HTTP, and its answer, which must be one that the documentation knows.
fn ask(method: &str, path: &str, headers: &[(String, String)], body: &[u8]) -> u16 {
    let mut request = format!("{method} {path} HTTP/1.1\r\nhost: kv\r\nconnection: close\r\n");
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    request += &format!("content-length: {}\r\n\r\n", body.len());
    let answer = exchange(&[request.as_bytes(), body].concat(), false);
    let (status, head, body) = parse(&answer);
    assert!(status < 500, "{request:?}: {}", String::from_utf8_lossy(&answer));
    if status >= 400 && method != "HEAD" && head.contains("content-type: application/json") {
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert!(body["error"].is_string() && body["message"].as_str().unwrap().ends_with('.'));
    } else {
        // HTTP itself refuses what is no path, without a word.
        assert!(status < 400 || method == "HEAD" || body.is_empty(), "{request:?}: {head}");
    }
    status
}

/// The node still does what it is for.
fn lives() {
    assert_eq!(ask("PUT", "/kv/alive", &[], b"yes"), 200);
    assert_eq!(ask("GET", "/kv/alive", &[], b""), 200);
}

fn method() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec!["GET", "PUT", "POST", "DELETE", "HEAD", "PATCH", "OPTIONS"])
            .prop_map(str::to_string),
        "[A-Z]{1,12}".prop_filter("a proxy's", |it| it != "CONNECT"),
    ]
}

/// Paths that are routes, almost routes, and anything that a request line can hold.
fn path() -> impl Strategy<Value = String> {
    let routes = vec![
        "/",
        "/kv",
        "/kv/",
        "/kv/a",
        "/command",
        "/txn",
        "/sessions",
        "/status",
        "/cluster/status",
        "/cluster/members",
        "/cluster/leader",
        "/metrics",
        "/healthz",
        "/readyz",
    ];
    let piece = prop_oneof![
        "[a-z/._~%-]{0,8}",
        "%[0-9A-Fa-f]{2}",
        prop::sample::select(vec!["%FF", "%00", "%2F", "..", "//", "%", "%zz", "%C3%A9"])
            .prop_map(str::to_string),
    ];
    let names = vec!["key", "prefix", "after", "limit", "consistency", "from", "since", "x"];
    let query = (prop::sample::select(names), "[!-\"$-~]{0,12}")
        .prop_map(|(name, value)| format!("{name}={value}"));
    (
        prop::sample::select(routes),
        prop::collection::vec(piece, 0..4),
        prop::collection::vec(query, 0..3),
    )
        .prop_map(|(route, pieces, query)| {
            let path = format!("{route}{}", pieces.concat());
            if query.is_empty() { path } else { format!("{path}?{}", query.join("&")) }
        })
}

fn headers() -> impl Strategy<Value = Vec<(String, String)>> {
    let names = vec![
        "if-match",
        "if-none-match",
        "kv-client",
        "kv-sequence",
        "last-event-id",
        "origin",
        "content-type",
        "accept",
        "range",
        "expect",
        "transfer-coding",
    ];
    let value = prop_oneof![
        "[ -~]{0,20}",
        "\"[0-9]{1,30}\"",
        "[0-9]{1,25}",
        "-?[0-9]{1,3}",
        Just("*".to_string()),
    ];
    let header = (prop::sample::select(names).prop_map(str::to_string), value);
    prop::collection::vec(header, 0..5)
}

/// Bodies that are JSON, almost JSON, and anything.
fn body() -> impl Strategy<Value = Vec<u8>> {
    let key = || prop_oneof![Just(Value::Null), "[a-c]{0,2}".prop_map(Value::from), Just(5.into())];
    let names = vec![
        "put",
        "get",
        "delete",
        "value",
        "value_base64",
        "key",
        "version",
        "exists",
        "to",
        "voters",
    ];
    let object = || {
        prop::collection::btree_map(prop::sample::select(names.clone()), key(), 0..4)
            .prop_map(|fields| serde_json::to_value(fields).unwrap())
    };
    let objects = || prop::collection::vec(object(), 0..4).prop_map(Value::from);
    let transaction = (objects(), objects()).prop_map(|(conditions, operations)| {
        serde_json::json!({ "conditions": conditions, "operations": operations })
    });
    prop_oneof![
        prop_oneof![transaction, object()].prop_map(|json| json.to_string().into_bytes()),
        ("[\\[{\":,0-9a-z}\\]]{0,40}").prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..200),
        (4000_usize..5000).prop_map(|size| vec![b'x'; size]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_request_has_an_answer(
        method in method(), path in path(), headers in headers(), body in body(),
    ) {
        // The node is alone, and members that it does not know would take it a minute to give up.
        prop_assume!(!(method == "PUT" && path.starts_with("/cluster/members")));
        ask(&method, &path, &headers, &body);
    }

    #[test]
    fn any_transaction_has_an_answer(body in body()) {
        let status = ask("POST", "/txn", &[], &body);
        prop_assert!([200, 400, 412, 413].contains(&status), "{}", status);
    }

    #[test]
    fn any_member_change_is_understood_or_refused(body in body()) {
        let names_voters = String::from_utf8_lossy(&body).contains("voters");
        prop_assume!(!names_voters);
        prop_assert_eq!(ask("PUT", "/cluster/members", &[], &body), 400);
    }

    #[test]
    fn bytes_that_are_no_request_harm_nobody(
        bytes in prop::collection::vec(any::<u8>(), 0..400), request in any::<bool>(),
    ) {
        let begin = if request { &b"PUT /kv/a HTTP/1.1\r\n"[..] } else { b"" };
        let answer = exchange(&[begin, &bytes].concat(), true);
        // By chance it may even be one.
        let answer = String::from_utf8_lossy(&answer);
        prop_assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 "), "{}", answer);
        prop_assert!(!answer.contains("HTTP/1.1 5"), "{}", answer);
    }
}

#[test]
fn half_a_request_harms_nobody() {
    for request in [
        "PUT /kv/half HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nhalf",
        "PUT /kv/half HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nha",
        "POST /txn HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{\"operations\":[",
        "GET /kv/ha",
    ] {
        let answer = exchange(request.as_bytes(), true);
        assert!(!answer.starts_with(b"HTTP/1.1 2"), "{}", String::from_utf8_lossy(&answer));
    }
    assert_eq!(ask("GET", "/kv/half", &[], b""), 404);
    lives();
}

#[test]
fn a_body_that_says_it_is_huge_is_not_waited_for() {
    let request = "PUT /kv/huge HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n";
    let (status, _, body) = parse(&exchange(request.as_bytes(), false));
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, &body["error"]), (413, &Value::from("too_large")));
    lives();
}

#[test]
fn bodies_that_do_not_come_leave_room_for_no_more_than_is_allowed() {
    let runtime = Runtime::new().unwrap();
    let serving = runtime.block_on(Serving::start(1, |config| {
        config.limits.value_bytes = 1024 * 1024;
        config.limits.transaction_bytes = 1100 * 1024;
        config.limits.bytes_in_flight = 2 * 1024 * 1024;
    }));
    let value = "x".repeat(1024 * 1024);
    runtime.block_on(serving.put(0, "/kv/a", &value)).succeeded();
    let half = || {
        let mut stream = TcpStream::connect(serving.address(0)).unwrap();
        let head = "PUT /kv/half HTTP/1.1\r\nhost: x\r\ncontent-length: 1048576\r\n\r\nhalf";
        stream.write_all(head.as_bytes()).unwrap();
        stream
    };
    let put = || {
        let request = serving.request(0, Method::PUT, "/kv/a").body(value.clone());
        runtime.block_on(try_send(request))
    };
    let mut halves = [half(), half()];
    let deadline = std::time::Instant::now() + PATIENCE;
    let busy = loop {
        let answer = put();
        match answer {
            Ok(answer) if answer.status == 429 => break answer,
            _ => assert!(std::time::Instant::now() < deadline, "{answer:?}"),
        }
        // Where the value just put was there first, it took the place of one of them.
        for stream in &mut halves {
            stream.set_nonblocking(true).unwrap();
            if stream.peek(&mut [0]).is_ok() {
                *stream = half();
            }
        }
    };
    assert_eq!(busy.is(429, "busy")["error"], "busy");
    assert_eq!(busy.header("retry-after"), "1");
    drop(halves);
    while !put().is_ok_and(|answer| answer.status == 200) {
        assert!(std::time::Instant::now() < deadline, "no room any more");
    }
    runtime.block_on(serving.end());
}
