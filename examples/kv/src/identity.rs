//! Whose disk it is: what keeps a wiped disk from taking part under its old id.
//!
//! Each directory draws an identity when it is begun. Others remember it, and refuse whoever comes
//! with another one under the same id: such a replica has forgotten its votes and what it promised.

use crate::snapshots::sync_directory;
use little_raft::ReplicaID;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Error, ErrorKind, Write};
use std::path::{Path, PathBuf};

/// What a directory is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The cluster that it belongs to.
    pub cluster: String,
    /// The node that it belongs to.
    pub id: ReplicaID,
    /// Drawn at random.
    pub identity: String,
    /// With what state its cluster began: `empty`, or which backup. Not known to a node that was
    /// added later.
    pub origin: Option<String>,
}

impl Identity {
    /// Draws an identity for a new directory.
    pub fn new(cluster: &str, id: ReplicaID, origin: Option<String>) -> Identity {
        let identity = format!("{:032x}", rand::random::<u128>());
        Identity { cluster: cluster.to_string(), id, identity, origin }
    }

    fn file(directory: &Path) -> PathBuf {
        directory.join("identity.json")
    }

    /// The identity of a directory; none if it is new.
    ///
    /// # Errors
    /// If it cannot be read or belongs to another node.
    pub fn load(directory: &Path, cluster: &str, id: ReplicaID) -> io::Result<Option<Identity>> {
        let file = Identity::file(directory);
        let Some(found) = read_json::<Identity>(&file)? else { return Ok(None) };
        if (found.cluster.as_str(), found.id) != (cluster, id) {
            let text = format!(
                "{}: the directory belongs to node {} of cluster {:?}, not to node {id} of cluster \
                 {cluster:?}; check data_directory and --name",
                file.display(),
                found.id,
                found.cluster
            );
            return Err(Error::new(ErrorKind::InvalidInput, text));
        }
        Ok(Some(found))
    }

    /// Makes a directory bear this identity.
    ///
    /// # Errors
    /// What the system says.
    pub fn save(&self, directory: &Path) -> io::Result<()> {
        write_json(&Identity::file(directory), self)
    }
}

/// The identities that others have come with.
#[derive(Debug)]
pub struct Acquaintances {
    file: PathBuf,
    known: BTreeMap<ReplicaID, String>,
}

impl Acquaintances {
    /// Reads whom this node knows.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn load(directory: &Path) -> io::Result<Acquaintances> {
        let file = directory.join("peers.json");
        let known = read_json(&file)?.unwrap_or_default();
        Ok(Acquaintances { file, known })
    }

    /// Remembers who came first under a member's id, and refuses all others. Who is no member may
    /// still change its disk.
    ///
    /// # Errors
    /// What is wrong and what to do.
    pub fn admit(&mut self, id: ReplicaID, identity: &str, is_member: bool) -> Result<(), String> {
        match self.known.get(&id) {
            Some(known) if known == identity => Ok(()),
            Some(_) => Err(format!(
                "node {id} comes with another disk than before. If its disk was lost, it has \
                 forgotten what it promised and must not go on under its id: remove it from the \
                 members and add a new node, best under a new id. If not, give it its directory back"
            )),
            None if !is_member => Ok(()),
            None => {
                self.known.insert(id, identity.to_string());
                write_json(&self.file, &self.known).map_err(|error| {
                    self.known.remove(&id);
                    format!("cannot remember node {id}: {}: {error}", self.file.display())
                })
            }
        }
    }

    /// Forgets those who are no longer members, so that they may come back with a new disk.
    pub fn forget(&mut self, gone: impl Fn(ReplicaID) -> bool) {
        let before = self.known.len();
        self.known.retain(|id, _| !gone(*id));
        if self.known.len() < before
            && let Err(error) = write_json(&self.file, &self.known)
        {
            log::warn!(
                "{}: {error}; after a restart nodes that were removed are refused",
                self.file.display()
            );
        }
    }
}

fn read_json<T: for<'de> Deserialize<'de>>(file: &Path) -> io::Result<Option<T>> {
    let text = match fs::read(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        text => text?,
    };
    serde_json::from_slice(&text).map(Some).map_err(|error| {
        let text = format!("{}: {error}; restore it from a copy of the directory", file.display());
        Error::new(ErrorKind::InvalidData, text)
    })
}

/// Replaces a file, as a whole or not at all.
fn write_json(file: &Path, value: &impl Serialize) -> io::Result<()> {
    let temporary = file.with_extension("new");
    let mut out = File::create(&temporary)?;
    out.write_all(&serde_json::to_vec_pretty(value)?)?;
    out.sync_all()?;
    fs::rename(&temporary, file)?;
    sync_directory(file.parent().unwrap_or(Path::new(".")))
}
