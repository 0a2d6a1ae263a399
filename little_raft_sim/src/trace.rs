//! How what happened reads.

use little_raft::{Body, Change, LogId, Message, Run, USER};

fn id(LogId { term, index }: LogId) -> String {
    format!("{index}@{term}")
}

fn entries<T>(runs: &[Run<T>]) -> String {
    let runs = runs.iter().map(|run| {
        let kind = if run.membership.is_some() { " configuration" } else { "" };
        format!(
            "{}..={}@{}{kind}",
            run.first,
            run.first + run.transitions.len().max(1) - 1,
            run.term
        )
    });
    runs.collect::<Vec<_>>().join(", ")
}

/// One change in one line.
pub(crate) fn change<T, D>(change: &Change<T, D>) -> String {
    let vote = change.voted_for.map_or("nobody".into(), |id| id.to_string());
    let truncated =
        change.truncate_from.map_or(String::new(), |from| format!(", truncated from {from}"));
    let snapshot = change.snapshot.as_ref().map(|it| format!(", snapshot {}", id(it.last())));
    format!(
        "term {} for {vote}{truncated}, compacted {}, [{}]{}",
        change.term,
        id(change.compacted),
        entries(&change.runs),
        snapshot.unwrap_or_default()
    )
}

/// One message in one short line.
pub(crate) fn message<T, D>(message: &Message<T, D>) -> String {
    let body = match &message.body {
        Body::RequestVote { pre, transfer, last } => {
            let kind = if *pre { "RequestPreVote" } else { "RequestVote" };
            let transfer = if *transfer { " for a transfer" } else { "" };
            format!("{kind} last {}{transfer}", id(*last))
        }
        Body::Vote { pre, granted } => {
            let kind = if *pre { "PreVote" } else { "Vote" };
            format!("{kind} {}", if *granted { "granted" } else { "refused" })
        }
        Body::AppendEntries { prev, runs, commit, round } => {
            let runs = entries(runs);
            format!("Append after {} [{runs}] commit {commit} round {round:?}", id(*prev))
        }
        Body::InstallSnapshot { snapshot, round, .. } => {
            format!("Install {} round {round:?}", id(snapshot.last()))
        }
        Body::Appended { result: Ok(matched), round } => {
            format!("Appended {matched} round {round:?}")
        }
        Body::Appended { result: Err(hint), round } => {
            format!("Rejected, hint {} round {round:?}", id(*hint))
        }
        Body::TimeoutNow => "TimeoutNow".to_string(),
        Body::ReadIndex { context } => format!("ReadIndex {context:x}"),
        Body::ReadIndexResponse { context, index } => {
            format!("ReadIndexResponse {context:x} {index}")
        }
        Body::ChangeMembership(membership) => format!("ChangeMembership {membership:?}"),
        Body::TransferLeadership(to_id) => format!("TransferLeadership {to_id}"),
    };
    if message.from_id == USER { body } else { format!("{body} in term {}", message.term) }
}

/// A sequence diagram for [Mermaid](https://mermaid.js.org) of the messages and events in the lines
/// of a trace.
pub fn mermaid<L: AsRef<str>>(lines: &[L]) -> String {
    let mut diagram = String::from("sequenceDiagram\n");
    for line in lines {
        let Some((_, what)) = line.as_ref().trim_start().split_once(' ') else { continue };
        let what = what.replace([';', '#'], ",");
        let message = what.split_once(": ").and_then(|(way, text)| {
            let (from, to) = way.split_once(" -> ")?;
            let is_name = |it: &str| it == "user" || it.parse::<usize>().is_ok();
            (is_name(from) && is_name(to)).then(|| format!("    {from}->>{to}: {text}\n"))
        });
        let note = what.split_once(' ').and_then(|(name, text)| {
            let id = name.parse::<usize>().ok()?;
            Some(format!("    Note over {id}: {text}\n"))
        });
        diagram += &message.or(note).unwrap_or_default();
    }
    diagram
}
