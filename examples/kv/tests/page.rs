//! The page: what is in the file, and what a browser makes of it.

mod common;
mod serving;

use axum::Router;
use axum::response::Html;
use axum::routing::get;
use common::PATIENCE;
use regex::Regex;
use serving::Serving;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;

const PAGE: &str = include_str!("../src/page/index.html");

/// What a browser finds out about the page, and writes where `--dump-dom` shows it.
const PROBE: &str = "<script>
    const errors = [];
    addEventListener('error', event => errors.push(event.message));
    addEventListener('unhandledrejection', event => errors.push(String(event.reason)));
    setInterval(() => {
        const root = document.documentElement;
        root.dataset.errors = errors.join(';');
        root.dataset.wide = Math.max(0, root.scrollWidth - innerWidth);
        root.dataset.width = innerWidth;
        root.dataset.nameless = [...document.querySelectorAll('svg:not([aria-label])')]
            .filter(it => !it.closest('[aria-hidden]')).length;
        root.dataset.faint = [...document.querySelectorAll('p, b, span, h1, h2, h3, td, th, dt, dd, li')]
            .filter(it => it.textContent.trim() && contrast(it) < 4.5).map(it => it.textContent).join(';');
    }, 100);
    function channels(colour) { return (colour.match(/[\\d.]+/g) || []).map(Number); }
    function luminance([red, green, blue]) {
        const linear = [red, green, blue].map(it => it / 255)
            .map(it => it <= 0.03928 ? it / 12.92 : ((it + 0.055) / 1.055) ** 2.4);
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
    }
    function ground(element) {
        for (let it = element; it; it = it.parentElement) {
            const colour = channels(getComputedStyle(it).backgroundColor);
            if (colour.length === 3 || colour[3] > 0) return colour;
        }
        return [255, 255, 255];
    }
    function contrast(element) {
        const one = luminance(channels(getComputedStyle(element).color)), other = luminance(ground(element));
        return (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    }
</script>";

/// A window of any width: browsers without a screen have none below 500. It shows what the page in
/// it has found out.
const FRAME: &str = "<!doctype html><body style=\"margin: 0\"><pre></pre><script>
    const frame = document.createElement('iframe');
    [frame.src, frame.width, frame.height] = ['/probed', location.search.slice(1), 844];
    document.body.append(frame);
    setInterval(() => {
        const root = frame.contentDocument.documentElement;
        Object.assign(document.documentElement.dataset, root.dataset);
        document.querySelector('pre').textContent = root.querySelector('#summary')?.textContent;
    }, 100);
</script>";

/// Where a browser is, if there is one. The word of a test that is skipped must be seen, so it goes
/// past the test harness, which keeps what passes to itself.
fn browser() -> Option<PathBuf> {
    let names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .flat_map(|directory| names.map(|name| directory.join(name)))
        .find(|program| program.is_file());
    if found.is_none() {
        let word = "\nSKIPPED: the page is not tested in a browser, since none of chromium, \
                    chromium-browser, google-chrome is installed\n";
        let _ = std::io::stderr().write_all(word.as_bytes());
    }
    found
}

/// What a browser of this size makes of a page after some seconds.
fn dump(browser: &PathBuf, url: &str, size: (u32, u32), dark: bool) -> String {
    let profile = tempfile::tempdir().unwrap();
    let mut command = Command::new(browser);
    command.args([
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
        "--virtual-time-budget=5000",
        "--dump-dom",
    ]);
    if dark {
        command.arg("--blink-settings=preferredColorScheme=0");
    }
    command.arg(format!("--window-size={},{}", size.0, size.1));
    command.arg(format!("--user-data-dir={}", profile.path().display())).arg(url);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    let reader = thread::spawn(move || std::io::read_to_string(&mut out).unwrap());
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("the browser takes too long");
        }
        thread::sleep(Duration::from_millis(20));
    }
    reader.join().unwrap()
}

/// Serves the page of a node, with the probe in it. Returns where.
async fn probed(serving: &Serving, place: usize) -> String {
    let page = PAGE.replace("<script>\n", &format!("{PROBE}\n<script>\n"));
    assert_ne!(page, PAGE);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/frame", listener.local_addr().unwrap());
    let routes = kv::http::router(serving.cluster.node(place).clone());
    let page = Router::new().route("/probed", get(async move || Html(page)));
    let page = page.route("/frame", get(async || Html(FRAME)));
    tokio::spawn(async move { axum::serve(listener, page.merge(routes)).await.unwrap() });
    url
}

fn attribute(dom: &str, name: &str) -> String {
    let pattern = Regex::new(&format!("data-{name}=\"([^\"]*)\"")).unwrap();
    pattern.captures(dom).unwrap_or_else(|| panic!("no {name} in {dom}"))[1].to_string()
}

/// The text that a reader sees, without the script and the style.
fn text(dom: &str) -> String {
    let hidden = Regex::new("(?s)<script.*?</script>|<style.*?</style>|<[^>]*>").unwrap();
    let words = hidden.replace_all(dom, " ").replace("&nbsp;", " ").replace('\u{a0}', " ");
    words.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_shows_the_cluster() {
    let Some(browser) = browser() else { return };
    let mut serving = Serving::start(3, |_| {}).await;
    let leader = serving.cluster.leader().await;
    for number in 0..20 {
        serving.put(leader, &format!("/kv/{number}"), "x").await.succeeded();
    }
    let term = serving.cluster.node(leader).status().term;
    // A curve is what became of seconds.
    let seconds = async || {
        let status = serving.get(leader, "/status?since=0").await.succeeded().json();
        status["history"].as_array().map_or(0, Vec::len)
    };
    let deadline = Instant::now() + PATIENCE;
    while seconds().await < 4 {
        assert!(Instant::now() < deadline, "no history in time");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let url = format!("http://{}/", serving.address(leader));
    let (program, page) = (browser.clone(), url.clone());
    let dom = tokio::task::spawn_blocking(move || dump(&program, &page, (1200, 900), false));
    let dom = dom.await.unwrap();
    let seen = text(&dom);
    let name = |place: usize| format!("node{}", place + 1);
    let summary = format!("{} leads in term {term}; all 3 nodes answer.", name(leader));
    assert!(seen.contains(&summary), "{seen}");
    for place in 0..3 {
        let role = if place == leader { "leader" } else { "follower" };
        assert!(
            seen.contains(&format!("{} {role} id {}, term {term}", name(place), place + 1)),
            "{seen}"
        );
    }
    for part in [
        "saved",
        "committed",
        "applied",
        "20 keys",
        "Voters node1, node2 and node3",
        "Majority 2 of 3",
        "sends entries",
        "Entries applied per second",
        "Requests per second",
        "Entries behind the leader",
    ] {
        assert!(seen.contains(part), "{part}: {seen}");
    }
    assert!(seen.contains(&format!("{} leads in term {term}", name(leader))), "{seen}");
    assert!(dom.contains("class=\"curve\""), "{dom}");
    // One node dies: the page says so, and goes on.
    let dead = (leader + 1) % 3;
    serving.kill(dead).await;
    let dom = tokio::task::spawn_blocking(move || dump(&browser, &url, (1200, 900), false));
    let seen = text(&dom.await.unwrap());
    assert!(seen.contains("2 of 3 nodes answer"), "{seen}");
    assert!(seen.contains(&format!("{} does not answer", name(dead))), "{seen}");
    serving.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_fits_a_phone_and_can_be_read() {
    let Some(browser) = browser() else { return };
    let mut serving = Serving::start(3, |_| {}).await;
    let leader = serving.cluster.leader().await;
    serving.put(leader, "/kv/a", "x").await.succeeded();
    // Of every kind of card one: leader, follower, silent.
    serving.kill((leader + 1) % 3).await;
    let url = probed(&serving, leader).await;
    for (width, dark) in [(390, false), (390, true), (1400, false), (1400, true)] {
        let (browser, url) = (browser.clone(), format!("{url}?{width}"));
        let dom = tokio::task::spawn_blocking(move || dump(&browser, &url, (1500, 1000), dark));
        let dom = dom.await.unwrap();
        assert_eq!(attribute(&dom, "width"), width.to_string());
        for fault in ["errors", "faint"] {
            assert_eq!(attribute(&dom, fault), "", "{fault} at {width}, dark: {dark}");
        }
        assert_eq!(attribute(&dom, "wide"), "0", "{width} is too narrow");
        assert_eq!(attribute(&dom, "nameless"), "0");
        assert!(text(&dom).contains("2 of 3 nodes answer"), "{dom}");
    }
    serving.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_comes_with_a_policy_that_lets_nothing_in() {
    let serving = Serving::start(1, |_| {}).await;
    let page = serving.get(0, "/").await.succeeded();
    assert_eq!(page.body, PAGE.as_bytes());
    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    let policy = page.header("content-security-policy");
    assert!(
        policy.starts_with("default-src 'none'; ") && policy.contains("frame-ancestors 'none'")
    );
    serving.end().await;
}

#[test]
fn the_page_needs_nothing_from_elsewhere() {
    let loads = Regex::new(r#"(?i)(src|href|srcset|action)\s*=\s*["']?([^"'\s>]*)"#).unwrap();
    for found in loads.captures_iter(PAGE) {
        let target = &found[2];
        let own = target.starts_with('/') && !target.starts_with("//");
        assert!(own || target == "data:,", "{target}");
    }
    for word in ["@import", "url(", "import(", "innerHTML =", "eval(", "document.write"] {
        assert!(!PAGE.contains(word), "{word}");
    }
    // What a name of a node might contain is never read as markup.
    assert!(!PAGE.contains("insertAdjacentHTML") && !PAGE.contains("outerHTML"));
    for part in [
        "<html lang=\"en\">",
        "name=\"viewport\"",
        "prefers-color-scheme: dark",
        "role=\"status\"",
        "<noscript>",
        "<h1",
        "<main",
    ] {
        assert!(PAGE.contains(part), "{part}");
    }
}
