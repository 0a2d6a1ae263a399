//! `kv watch`: changes as they happen, from one node or, if that one is gone, from the next.

use crate::cli::client::{Client, Repeat};
use crate::cli::failure::{Failure, Kind};
use crate::cli::output::{Output, preview};
use clap::Args;
use futures_util::StreamExt;
use kv::http::json::{ChangeBody, ChangesBody};
use reqwest::Response;
use std::io::{Write, stdout};
use std::mem::take;
use std::time::Duration;
use tokio::time::timeout;

/// How long a node may say nothing at all. It says every 15 seconds that it is still there.
const SILENCE: Duration = Duration::from_secs(45);

#[derive(Args)]
pub(crate) struct Watch {
    /// Only keys that begin with this
    #[arg(default_value = "", hide_default_value = true)]
    prefix: String,
    /// Begin with the changes of this revision; without it, with what comes
    #[arg(long, value_name = "REVISION")]
    from: Option<u64>,
    /// End after so many changes; 0 for never
    #[arg(long, value_name = "COUNT", default_value_t = 0, hide_default_value = true)]
    count: usize,
}

/// Server-sent events, as they arrive in pieces.
#[derive(Default)]
pub(crate) struct Events {
    rest: Vec<u8>,
    kind: String,
    data: String,
}

impl Events {
    /// The events that this piece completes: kind and data of each.
    pub(crate) fn push(&mut self, piece: &[u8]) -> Vec<(String, String)> {
        self.rest.extend_from_slice(piece);
        let mut events = Vec::new();
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            match line.trim_end().split_once(':') {
                Some(("event", kind)) => self.kind = kind.trim_start().to_string(),
                Some(("data", data)) => self.data += data.strip_prefix(' ').unwrap_or(data),
                Some(_) => {}
                None if self.data.is_empty() => self.kind.clear(),
                None => events.push((take(&mut self.kind), take(&mut self.data))),
            }
        }
        events
    }
}

pub(crate) async fn watch(client: &Client, output: Output, watch: Watch) -> Result<(), Failure> {
    let mut left = if watch.count == 0 { usize::MAX } else { watch.count };
    let mut from = watch.from;
    while left > 0 {
        let get = client.get("/watch");
        let query =
            [("prefix", Some(watch.prefix.clone())), ("from", from.map(|it| it.to_string()))];
        let query: Vec<_> = query.iter().filter(|(_, value)| value.is_some()).collect();
        let response = client.send(Repeat::Harmless, |node| get(node).query(&query)).await?;
        let since =
            response.headers().get("kv-revision").and_then(|it| it.to_str().ok()?.parse().ok());
        let since: u64 = since.ok_or_else(|| Failure::other("the answer is no watch of kv"))?;
        from = Some(from.unwrap_or(since + 1));
        follow(response, output, &mut from, &mut left).await?;
    }
    Ok(())
}

/// Prints what one node tells until it has told enough or is gone: another knows how it goes on.
async fn follow(
    response: Response, output: Output, from: &mut Option<u64>, left: &mut usize,
) -> Result<(), Failure> {
    let (mut pieces, mut events) = (response.bytes_stream(), Events::default());
    while let Ok(Some(Ok(piece))) = timeout(SILENCE, pieces.next()).await {
        for (kind, data) in events.push(&piece) {
            let Some(body) = changes(&kind, &data)? else { return Ok(()) };
            *from = Some(body.revision + 1);
            for change in body.changes {
                print(output, body.revision, &change)?;
                *left -= 1;
                if *left == 0 {
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

/// What one event tells; nothing if the node is being stopped.
fn changes(kind: &str, data: &str) -> Result<Option<ChangesBody>, Failure> {
    if kind == "error" {
        let failure = Failure::refused(410, data.as_bytes());
        return if failure.kind == Kind::Negative { Err(failure) } else { Ok(None) };
    }
    serde_json::from_str(data).map(Some).map_err(|error| {
        Failure::other(format!("the node sent a change that is not understood: {error}"))
    })
}

fn print(output: Output, revision: u64, change: &ChangeBody) -> Result<(), Failure> {
    if output == Output::Json {
        let mut line = serde_json::json!(change);
        line["revision"] = revision.into();
        return Ok(output.print(&line, String::new)?);
    }
    let key = preview(change.key.as_bytes());
    if change.deleted {
        writeln!(stdout(), "{revision} del {key}")?;
    } else {
        let value = change.value.clone().bytes().map_err(Failure::other)?;
        writeln!(stdout(), "{revision} put {key} {}", preview(&value))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Events;

    #[test]
    fn events_arrive_in_pieces_of_any_size() {
        let text = ": hello\n\nevent: change\nid: 7\ndata: {\"a\":1}\n\nevent: error\ndata: x\n\n";
        let want = [("change", "{\"a\":1}"), ("error", "x")]
            .map(|(kind, data)| (kind.to_string(), data.to_string()));
        for size in 1..text.len() {
            let mut events = Events::default();
            let got: Vec<_> =
                text.as_bytes().chunks(size).flat_map(|piece| events.push(piece)).collect();
            assert_eq!(got, want, "pieces of {size}");
        }
    }
}
