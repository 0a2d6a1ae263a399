//! How values look in a script, in both directions: what is printed can be read back.

use super::{Body, Change, Message, Run, Transition};
use little_raft::{LogId, Membership, ReplicaID, Snapshot};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Runs longer than this are printed as a range.
const SHOWN: usize = 8;

/// One entry of a log: a transition's name or a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Payload {
    Transition(String),
    Membership(Membership),
}

/// The entries of runs, one by one.
pub(crate) fn entries(runs: &[Run]) -> Vec<(LogId, Payload)> {
    let mut entries = Vec::new();
    for run in runs {
        let transitions = run.transitions.iter().map(|it| Payload::Transition(it.0.clone()));
        let membership = run.membership.iter().map(|it| Payload::Membership(Membership::clone(it)));
        let ids = (run.first..).map(|index| LogId { term: run.term, index });
        entries.extend(ids.zip(transitions.chain(membership)));
    }
    entries
}

/// A log's entries as runs: neighbours of one term share one.
pub(crate) fn to_runs(entries: Vec<(LogId, Payload)>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (id, payload) in entries {
        let (first, term) = (id.index, id.term);
        match (payload, runs.last_mut()) {
            (Payload::Transition(name), Some(run))
                if run.term == term
                    && run.membership.is_none()
                    && run.last().index + 1 == first =>
            {
                Arc::make_mut(&mut run.transitions).push(Transition(name));
            }
            (Payload::Transition(name), _) => {
                let transitions = Arc::new(vec![Transition(name)]);
                runs.push(Run { first, term, transitions, membership: None });
            }
            (Payload::Membership(membership), _) => {
                let membership = Some(Arc::new(membership));
                runs.push(Run { first, term, transitions: Arc::default(), membership });
            }
        }
    }
    runs
}

pub(crate) fn show_id(id: LogId) -> String {
    format!("{}@{}", id.index, id.term)
}

pub(crate) fn show_entry((id, payload): &(LogId, Payload)) -> String {
    match (show_id(*id), payload) {
        (id, Payload::Transition(name)) if *name == id => id,
        (id, Payload::Transition(name)) => format!("{id}={name}"),
        (id, Payload::Membership(membership)) => format!("{id}={}", show_membership(membership)),
    }
}

pub(crate) fn show_runs(runs: &[Run]) -> String {
    let show = |run: &Run| {
        let entries = entries(std::slice::from_ref(run));
        match &entries[..] {
            [first, .., last] if entries.len() > SHOWN => {
                format!("{}..{}", show_entry(first), show_entry(last))
            }
            _ => entries.iter().map(show_entry).collect::<Vec<_>>().join(" "),
        }
    };
    format!("[{}]", runs.iter().map(show).collect::<Vec<_>>().join(" "))
}

pub(crate) fn show_membership(membership: &Membership) -> String {
    let Membership { voters, outgoing, learners } = membership;
    let list = |name: &str, ids: &BTreeSet<ReplicaID>| {
        let ids: Vec<_> = ids.iter().map(ReplicaID::to_string).collect();
        (!ids.is_empty()).then(|| format!("{name}={}", ids.join(",")))
    };
    let parts = [list("voters", voters), list("outgoing", outgoing), list("learners", learners)];
    format!("{{{}}}", parts.into_iter().flatten().collect::<Vec<_>>().join(" "))
}

/// What the message says; `read` names the read that a context stands for.
pub(crate) fn show_body(body: &Body, read: impl Fn(u64) -> String) -> String {
    let flag = |set: bool, name: &str| if set { format!(" {name}") } else { String::new() };
    match body {
        Body::RequestVote { pre, transfer, last } => {
            let flags = flag(*pre, "pre") + &flag(*transfer, "transfer");
            format!("RequestVote{flags} last={}", show_id(*last))
        }
        Body::Vote { pre, granted } => {
            format!("Vote{} {}", flag(*pre, "pre"), if *granted { "granted" } else { "refused" })
        }
        Body::AppendEntries { prev, runs, commit, .. } => {
            let runs = if runs.is_empty() { String::new() } else { show_runs(runs) + " " };
            format!("AppendEntries prev={} {runs}commit={commit}", show_id(*prev))
        }
        Body::InstallSnapshot { snapshot, membership, .. } => {
            let (last, data) = (show_id(snapshot.last()), snapshot.data.join(" "));
            format!("InstallSnapshot {last} [{data}] {}", show_membership(membership))
        }
        Body::Appended { result: Ok(matched), .. } => format!("Appended ok={matched}"),
        Body::Appended { result: Err(hint), .. } => format!("Appended hint={}", show_id(*hint)),
        Body::TimeoutNow => "TimeoutNow".into(),
        Body::ReadIndex { context } => format!("ReadIndex {}", read(*context)),
        Body::ReadIndexResponse { context, index } => {
            format!("ReadIndexResponse {} index={index}", read(*context))
        }
        Body::ChangeMembership(membership) => {
            format!("ChangeMembership {}", show_membership(membership))
        }
        Body::TransferLeadership(to_id) => format!("TransferLeadership to={to_id}"),
    }
}

/// What is new in a change, compared with what was saved before.
pub(crate) fn show_change(change: &Change, before: &Change) -> String {
    let mut parts = Vec::new();
    if change.term != before.term {
        parts.push(format!("term={}", change.term));
    }
    if change.voted_for != before.voted_for {
        let vote = change.voted_for.map_or("none".into(), |id| id.to_string());
        parts.push(format!("vote={vote}"));
    }
    parts.extend(change.truncate_from.map(|index| format!("truncates from {index}")));
    if !change.runs.is_empty() {
        parts.push(show_runs(&change.runs));
    }
    parts.extend(change.snapshot.iter().map(|it| format!("snapshot {}", show_id(it.last()))));
    if change.compacted != before.compacted {
        parts.push(format!("compacted to {}", show_id(change.compacted)));
    }
    let changed = change.membership.iter().filter(|it| before.membership.as_ref() != Some(*it));
    parts.extend(changed.map(show_membership));
    if parts.is_empty() { "nothing new".into() } else { parts.join(" ") }
}

/// The words of a line; what stands in brackets or braces belongs to one word.
pub(crate) fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut depth = 0;
    for letter in line.chars() {
        match letter {
            '[' | '{' => depth += 1,
            ']' | '}' => depth -= 1,
            _ => {}
        }
        match words.last_mut() {
            Some(word) if !letter.is_whitespace() || depth > 0 => word.push(letter),
            _ => words.push(String::new()),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

pub(crate) fn parse_number<N: std::str::FromStr>(text: &str) -> N {
    text.parse().unwrap_or_else(|_| panic!("`{text}` is no number"))
}

pub(crate) fn parse_ids<C: FromIterator<ReplicaID>>(text: &str) -> C {
    text.split(',').filter(|id| !id.is_empty()).map(parse_number).collect()
}

/// The value after `name=` among the words.
pub(crate) fn option<'a>(words: &'a [String], name: &str) -> Option<&'a str> {
    words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

fn required<'a>(words: &'a [String], name: &str) -> &'a str {
    option(words, name).unwrap_or_else(|| panic!("`{name}=` is missing"))
}

pub(crate) fn parse_id(text: &str) -> LogId {
    let (index, term) = text.split_once('@').unwrap_or_else(|| panic!("`{text}` is no index@term"));
    LogId { term: parse_number(term), index: parse_number(index) }
}

fn inside(text: &str, open: char, close: char) -> Option<&str> {
    text.strip_prefix(open)?.strip_suffix(close)
}

/// `{voters=1,2 outgoing=1 learners=3}`
pub(crate) fn parse_membership(text: &str) -> Membership {
    let words = words(inside(text, '{', '}').unwrap_or_else(|| panic!("`{text}` needs braces")));
    let ids = |name| option(&words, name).map(parse_ids).unwrap_or_default();
    Membership { voters: ids("voters"), outgoing: ids("outgoing"), learners: ids("learners") }
}

/// `[1@1 2@1=name 3@1={voters=1,2} 4@1..9@1]`
pub(crate) fn parse_runs(words: &[String]) -> Vec<Run> {
    let Some(text) = words.iter().find_map(|word| inside(word, '[', ']')) else { return vec![] };
    let mut entries = Vec::new();
    for word in self::words(text) {
        let (id, value) = word.split_once('=').map_or((&word[..], None), |(id, it)| (id, Some(it)));
        let (from, to) = id.split_once("..").unwrap_or((id, id));
        let (from, to) = (parse_id(from), parse_id(to));
        for index in from.index..=to.index {
            let id = LogId { term: from.term, index };
            let payload = match value {
                Some(text) if text.starts_with('{') => Payload::Membership(parse_membership(text)),
                Some(name) => Payload::Transition(name.into()),
                None => Payload::Transition(show_id(id)),
            };
            entries.push((id, payload));
        }
    }
    to_runs(entries)
}

/// A message's body in the words in which it is printed. `round` is what an append would carry,
/// `context` the context of a read.
pub(crate) fn parse_body(
    words: &[String], round: std::time::Duration, context: impl Fn(&str) -> u64,
) -> Body {
    let has = |flag: &str| words.iter().any(|word| word == flag);
    let braces = || words.iter().find(|word| word.starts_with('{')).map(|it| parse_membership(it));
    let number = |name| parse_number(required(words, name));
    match words[0].as_str() {
        "RequestVote" => {
            let last = parse_id(required(words, "last"));
            Body::RequestVote { pre: has("pre"), transfer: has("transfer"), last }
        }
        "Vote" => Body::Vote { pre: has("pre"), granted: has("granted") },
        "AppendEntries" => {
            let (prev, runs) = (parse_id(required(words, "prev")), parse_runs(words));
            Body::AppendEntries { prev, runs, commit: number("commit"), round }
        }
        "InstallSnapshot" => {
            let LogId { index, term } = parse_id(&words[1]);
            let data = words.iter().find_map(|word| inside(word, '[', ']')).unwrap_or_default();
            let data = self::words(data);
            let snapshot = Snapshot { last_included_index: index, last_included_term: term, data };
            Body::InstallSnapshot {
                snapshot,
                membership: Arc::new(braces().unwrap_or_default()),
                round,
            }
        }
        "Appended" => {
            let matched = option(words, "ok").map(parse_number);
            let result = matched.ok_or_else(|| parse_id(required(words, "hint")));
            Body::Appended { result, round }
        }
        "TimeoutNow" => Body::TimeoutNow,
        "ReadIndex" => Body::ReadIndex { context: context(&words[1]) },
        "ReadIndexResponse" => {
            Body::ReadIndexResponse { context: context(&words[1]), index: number("index") }
        }
        "TransferLeadership" => Body::TransferLeadership(number("to")),
        "ChangeMembership" => parse_change(words).body,
        other => panic!("`{other}` is no message"),
    }
}

/// `voters=1,2 learners=3`, in which an id may stand twice.
pub(crate) fn parse_change(words: &[String]) -> Message {
    let ids = |name| option(words, name).map(parse_ids).unwrap_or_default();
    Message::change_membership(ids("voters"), ids("learners"))
}
