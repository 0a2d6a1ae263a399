//! `kv get`, `put`, `del`, `cas` and `list`.

use crate::cli::client::{Client, Repeat};
use crate::cli::failure::Failure;
use crate::cli::output::{Output, preview, table};
use clap::{Args, ValueEnum};
use kv::http::json::{Entry, Listing, SessionOpened, Value, Written};
use reqwest::{Method, RequestBuilder};
use serde_json::json;
use std::io::{IsTerminal, Read, Write, stdin, stdout};
use std::path::PathBuf;

/// How fresh an answer must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Freshness {
    /// Knows of every write that was acknowledged before
    #[default]
    Linearizable,
    /// The same, if clocks drift apart no faster than the configuration says
    Lease,
    /// What the asked node knows, which may be old
    Stale,
}

impl Freshness {
    fn name(self) -> &'static str {
        match self {
            Freshness::Linearizable => "linearizable",
            Freshness::Lease => "lease",
            Freshness::Stale => "stale",
        }
    }
}

#[derive(Args)]
pub(crate) struct Get {
    /// The key
    key: String,
    /// How fresh the answer must be
    #[arg(long, value_enum, default_value_t)]
    consistency: Freshness,
}

#[derive(Args)]
pub(crate) struct Put {
    /// The key
    key: String,
    #[command(flatten)]
    source: Source,
    /// Send it again until it is known to be done, which it is once
    #[arg(long)]
    once: bool,
}

#[derive(Args)]
pub(crate) struct Delete {
    /// The key
    key: String,
    /// Only if the key has this version
    #[arg(long, value_name = "VERSION")]
    version: Option<u64>,
    /// Send it again until it is known to be done, which it is once
    #[arg(long)]
    once: bool,
}

#[derive(Args)]
pub(crate) struct CompareAndSwap {
    /// The key
    key: String,
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    condition: SwapCondition,
    /// Send it again until it is known to be done, which it is once
    #[arg(long)]
    once: bool,
}

/// What must hold for a swap.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub(crate) struct SwapCondition {
    /// The key has this version, as `kv list` shows it
    #[arg(long, value_name = "VERSION")]
    version: Option<u64>,
    /// The key does not exist
    #[arg(long)]
    absent: bool,
}

/// Where a value comes from.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Source {
    /// The value; - reads it from standard input
    value: Option<String>,
    /// Read the value from a file
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct List {
    /// Only keys that begin with this
    #[arg(default_value = "", hide_default_value = true)]
    prefix: String,
    /// Only keys after this one
    #[arg(long, value_name = "KEY", default_value = "", hide_default_value = true)]
    after: String,
    /// At most so many; 0 for all
    #[arg(long, value_name = "COUNT", default_value_t = 0, hide_default_value = true)]
    limit: usize,
    /// How fresh the answer must be
    #[arg(long, value_enum, default_value_t)]
    consistency: Freshness,
}

impl Source {
    fn read(&self) -> Result<Vec<u8>, Failure> {
        match (&self.value, &self.file) {
            (Some(dash), None) if dash == "-" => {
                let mut value = Vec::new();
                stdin().lock().read_to_end(&mut value)?;
                Ok(value)
            }
            (Some(value), None) => Ok(value.clone().into_bytes()),
            (_, Some(file)) => std::fs::read(file).map_err(|error| {
                Failure::usage(format!("{} cannot be read: {error}", file.display()))
            }),
            (None, None) => Err(Failure::usage("give a value, - or --file")),
        }
    }
}

/// A request about one key, which not every path would bear.
fn about<'a>(
    client: &'a Client, method: Method, key: &'a str,
) -> impl Fn(&str) -> RequestBuilder + use<'a> {
    let request = client.request(method, "/kv");
    move |node| request(node).query(&[("key", key)])
}

pub(crate) async fn get(client: &Client, output: Output, get: Get) -> Result<(), Failure> {
    let about = about(client, Method::GET, &get.key);
    let consistency = [("consistency", get.consistency.name())];
    let response = client.send(Repeat::Harmless, |node| about(node).query(&consistency)).await?;
    let version = response
        .headers()
        .get("etag")
        .and_then(|tag| tag.to_str().ok()?.trim_matches('"').parse().ok());
    let value = response.bytes().await.map_err(|error| Failure::other(error.to_string()))?;
    if output == Output::Json {
        let entry = Entry {
            key: get.key.clone(),
            version: version.unwrap_or_default(),
            value: Value::new(&value),
        };
        return Ok(output.print(&entry, String::new)?);
    }
    // Exactly the value, so that it can go into a file; only a terminal wants the line to end.
    let mut out = stdout().lock();
    out.write_all(&value)?;
    if out.is_terminal() && !value.ends_with(b"\n") {
        writeln!(out)?;
    }
    Ok(out.flush()?)
}

pub(crate) async fn put(client: &Client, output: Output, put: Put) -> Result<(), Failure> {
    let value = put.source.read()?;
    let about = about(client, Method::PUT, &put.key);
    let written = write(client, put.once, |node| about(node).body(value.clone())).await?;
    Ok(output.print(&written, || format!("{} is now at version {}", put.key, written.revision))?)
}

pub(crate) async fn cas(
    client: &Client, output: Output, cas: CompareAndSwap,
) -> Result<(), Failure> {
    let value = cas.source.read()?;
    let (header, expected) = match cas.condition.version {
        Some(version) => ("if-match", format!("\"{version}\"")),
        None => ("if-none-match", "*".to_string()),
    };
    let about = about(client, Method::PUT, &cas.key);
    let request = |node: &str| about(node).header(header, &expected).body(value.clone());
    let written = write(client, cas.once, request).await?;
    Ok(output.print(&written, || format!("{} is now at version {}", cas.key, written.revision))?)
}

pub(crate) async fn delete(client: &Client, output: Output, del: Delete) -> Result<(), Failure> {
    let about = about(client, Method::DELETE, &del.key);
    let request = |node: &str| match del.version {
        Some(version) => about(node).header("if-match", format!("\"{version}\"")),
        None => about(node),
    };
    let written = write(client, del.once, request).await?;
    Ok(output
        .print(&written, || format!("{} is gone as of revision {}", del.key, written.revision))?)
}

/// Sends a write, within a session if it is to be done once.
async fn write(
    client: &Client, once: bool, request: impl Fn(&str) -> RequestBuilder,
) -> Result<Written, Failure> {
    if !once {
        return client.ask(Repeat::Never, request).await;
    }
    // A session that was opened twice does no harm.
    let open = client.request(Method::POST, "/sessions");
    let session: SessionOpened = client.ask(Repeat::Harmless, open).await?;
    let within =
        |node: &str| request(node).header("kv-client", session.client).header("kv-sequence", 1);
    client.ask(Repeat::Once, within).await
}

pub(crate) async fn list(client: &Client, output: Output, list: List) -> Result<(), Failure> {
    const PAGE: usize = 1000;
    let (mut after, mut rows) = (list.after.clone(), Vec::new());
    let mut left = if list.limit == 0 { usize::MAX } else { list.limit };
    let get = client.get("/kv");
    while left > 0 {
        let limit = left.min(PAGE).to_string();
        let query = [
            ("prefix", list.prefix.as_str()),
            ("after", &after),
            ("limit", &limit),
            ("consistency", list.consistency.name()),
        ];
        let page: Listing = client.ask(Repeat::Harmless, |node| get(node).query(&query)).await?;
        left = left.saturating_sub(page.entries.len());
        for entry in page.entries {
            match output {
                Output::Json => output.print(&json!(entry), String::new)?,
                Output::Text => rows.push(row(entry)?),
            }
        }
        match page.next {
            Some(next) => after = next,
            None => break,
        }
    }
    if output == Output::Text {
        writeln!(stdout(), "{}", table(&["key", ">version", "value"], &rows))?;
    }
    Ok(())
}

fn row(entry: Entry) -> Result<Vec<String>, Failure> {
    let value = entry.value.bytes().map_err(Failure::other)?;
    Ok(vec![preview(entry.key.as_bytes()), entry.version.to_string(), preview(&value)])
}
