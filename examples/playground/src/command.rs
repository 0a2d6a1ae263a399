//! What can be typed, and what to say if it was typed wrongly.

use crate::store::Text;
use little_raft::{ReplicaID, USER};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Every command: its form, and what it does.
pub(crate) const COMMANDS: [(&str, &str); 15] = [
    ("set KEY VALUE", "write a value; quote what contains spaces"),
    ("get KEY [@REPLICA]", "read it, at the leader or at any replica: linearizable at all of them"),
    ("del KEY", "delete it"),
    ("cas KEY OLD NEW", "write NEW if the value is OLD (compare and swap)"),
    ("load FILE", "write every line KEY<TAB>VALUE of a file, and compare the replicas"),
    ("status", "how each replica is, and how the leader sees the others"),
    ("kill REPLICA", "stop a replica; what it has saved remains"),
    ("restart REPLICA", "bring a stopped replica back with what it has saved"),
    ("cut REPLICA [REPLICA]", "cut the link between two replicas, or all links of one"),
    ("heal", "mend all links"),
    ("members REPLICA.. [learners REPLICA..]", "change who votes, and who only follows"),
    ("transfer REPLICA", "hand leadership over to a replica"),
    ("snapshot", "what the snapshots cover, and what is left of the logs"),
    ("help", "this list; `leader` may stand for the replica to kill, to cut or to read at"),
    ("quit", "stop all replicas and leave"),
];

/// What was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Set { key: Text, value: Text },
    Get { key: Text, at: Option<Which> },
    Delete { key: Text },
    CompareAndSwap { key: Text, old: Text, new: Text },
    Load(PathBuf),
    Status,
    Kill(Which),
    Restart(ReplicaID),
    Cut(Which, Option<Which>),
    Heal,
    Members { voters: BTreeSet<ReplicaID>, learners: BTreeSet<ReplicaID> },
    Transfer(ReplicaID),
    Snapshot,
    Help,
    Quit,
}

/// A replica, by its id or by what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    Leader,
    Id(ReplicaID),
}

impl Command {
    /// The command in a line, or nothing if it is empty or a comment.
    pub(crate) fn parse_line(line: &str) -> Result<Option<Command>, String> {
        if line.trim_start().starts_with('#') {
            return Ok(None);
        }
        let words = shell_words::split(line)
            .map_err(|_| "a quote is not closed: write \"like this\"".to_string())?;
        if words.is_empty() { Ok(None) } else { Command::parse(&words).map(Some) }
    }

    pub(crate) fn parse(words: &[String]) -> Result<Command, String> {
        let words = words.iter().map(String::as_str).collect::<Vec<_>>();
        let Some((name, arguments)) = words.split_first() else { return Ok(Command::Help) };
        let command = match (*name, arguments) {
            ("set", [key, value]) => Command::Set { key: text(key), value: text(value) },
            ("get", [key]) => Command::Get { key: text(key), at: None },
            ("get", [key, at]) if at.starts_with('@') => {
                Command::Get { key: text(key), at: Some(which(&at[1..])?) }
            }
            ("del", [key]) => Command::Delete { key: text(key) },
            ("cas", [key, old, new]) => {
                Command::CompareAndSwap { key: text(key), old: text(old), new: text(new) }
            }
            ("load", [file]) => Command::Load(PathBuf::from(file)),
            ("status", []) => Command::Status,
            ("kill", [id]) => Command::Kill(which(id)?),
            ("restart", [id]) => Command::Restart(replica(id)?),
            ("cut", [one]) => Command::Cut(which(one)?, None),
            ("cut", [one, other]) if one != other => Command::Cut(which(one)?, Some(which(other)?)),
            ("heal", []) => Command::Heal,
            ("members", ids) if !ids.is_empty() => members(ids)?,
            ("transfer", [id]) => Command::Transfer(replica(id)?),
            ("snapshot", []) => Command::Snapshot,
            ("help", []) => Command::Help,
            ("quit", []) => Command::Quit,
            _ => return Err(wrong(name)),
        };
        Ok(command)
    }
}

fn text(word: &str) -> Text {
    Text::from(word)
}

fn replica(word: &str) -> Result<ReplicaID, String> {
    let id = word.parse().ok().filter(|id| (1..USER).contains(id));
    id.ok_or_else(|| format!("`{word}` is no replica: they are numbers from 1 on"))
}

fn which(word: &str) -> Result<Which, String> {
    if word == "leader" { Ok(Which::Leader) } else { replica(word).map(Which::Id) }
}

fn members(words: &[&str]) -> Result<Command, String> {
    let mut parts = words.split(|word| *word == "learners");
    let mut next = || {
        let part = parts.next().unwrap_or_default();
        part.iter().map(|word| replica(word)).collect::<Result<BTreeSet<_>, _>>()
    };
    let (voters, learners) = (next()?, next()?);
    let named = words.iter().filter(|word| **word != "learners").count();
    if voters.is_empty() {
        return Err("somebody must vote: members 1 2 3 learners 4".to_string());
    }
    if parts.next().is_some() || voters.union(&learners).count() < named {
        return Err("name each replica once: members 1 2 3 learners 4".to_string());
    }
    Ok(Command::Members { voters, learners })
}

/// The name of a command, given its form.
pub(crate) fn name(form: &str) -> &str {
    form.split(' ').next().unwrap_or(form)
}

/// What to say about a command that is none.
fn wrong(word: &str) -> String {
    if let Some((form, meaning)) = COMMANDS.iter().find(|(form, _)| name(form) == word) {
        return format!("`{word}` is written like this: {form} ({meaning})");
    }
    let names = COMMANDS.iter().map(|(form, _)| name(form));
    let closest = names.min_by_key(|name| strsim::damerau_levenshtein(name, word));
    match closest.filter(|name| strsim::damerau_levenshtein(name, word) <= 2) {
        Some(name) => format!("there is no command `{word}`; did you mean `{name}`?"),
        None => format!("there is no command `{word}`; `help` lists them"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Command {
        Command::parse_line(line).unwrap().unwrap()
    }

    fn refused(line: &str) -> String {
        Command::parse_line(line).unwrap_err()
    }

    #[test]
    fn every_command_that_help_lists_is_understood() {
        for (form, _) in COMMANDS {
            let line = form
                .replace("[@REPLICA]", "@2")
                .replace("cut REPLICA [REPLICA]", "cut 1 2")
                .replace("REPLICA.. [learners REPLICA..]", "1 2 3 learners 4")
                .replace("REPLICA", "2");
            assert!(Command::parse_line(&line).is_ok_and(|it| it.is_some()), "{line}");
        }
    }

    #[test]
    fn words_may_be_quoted() {
        let key = Text::from("name");
        let expected = Command::Set { key, value: Text::from("Ada Lovelace") };
        assert_eq!(parsed("set name 'Ada Lovelace'"), expected);
        assert_eq!(parsed("  set  name \"Ada Lovelace\" "), expected);
        assert!(refused("set name 'Ada").contains("not closed"));
    }

    #[test]
    fn empty_lines_and_comments_are_nothing() {
        assert_eq!(Command::parse_line(""), Ok(None));
        assert_eq!(Command::parse_line("   "), Ok(None));
        assert_eq!(Command::parse_line(" # it's a comment"), Ok(None));
    }

    #[test]
    fn reads_may_name_a_replica() {
        let key = Text::from("k");
        assert_eq!(parsed("get k"), Command::Get { key: key.clone(), at: None });
        let at = |which| Command::Get { key: key.clone(), at: Some(which) };
        assert_eq!(parsed("get k @2"), at(Which::Id(2)));
        assert_eq!(parsed("get k @leader"), at(Which::Leader));
        assert_eq!(parsed("get @2"), Command::Get { key: Text::from("@2"), at: None });
    }

    #[test]
    fn links_are_cut_one_by_one_or_all_of_a_replica() {
        assert_eq!(parsed("cut 1 2"), Command::Cut(Which::Id(1), Some(Which::Id(2))));
        assert_eq!(parsed("cut leader"), Command::Cut(Which::Leader, None));
        assert!(refused("cut 1 1").contains("cut REPLICA [REPLICA]"));
    }

    #[test]
    fn members_are_voters_and_learners() {
        let members = |voters: &[usize], learners: &[usize]| Command::Members {
            voters: voters.iter().copied().collect(),
            learners: learners.iter().copied().collect(),
        };
        assert_eq!(parsed("members 1 2 3 4"), members(&[1, 2, 3, 4], &[]));
        assert_eq!(parsed("members 1 2 learners 3 4"), members(&[1, 2], &[3, 4]));
        for twice in ["members 1 1", "members 1 learners 1", "members 1 learners 2 learners 3"] {
            assert!(refused(twice).contains("once"), "{twice}");
        }
        assert!(refused("members learners 1").contains("somebody must vote"));
        assert!(refused("members one").contains("`one` is no replica"));
    }

    #[test]
    fn a_wrong_command_is_told_its_form() {
        assert!(refused("set k").starts_with("`set` is written like this: set KEY VALUE (write"));
        assert!(refused("set k v w").contains("quote what contains spaces"));
        assert!(refused("get k 2").contains("get KEY [@REPLICA]"));
        assert_eq!(refused("kill two"), "`two` is no replica: they are numbers from 1 on");
        assert_eq!(refused("kill 0"), "`0` is no replica: they are numbers from 1 on");
        assert_eq!(refused("stauts"), "there is no command `stauts`; did you mean `status`?");
        assert_eq!(refused("frobnicate"), "there is no command `frobnicate`; `help` lists them");
    }
}
