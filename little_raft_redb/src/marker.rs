//! The door to a directory: who has it open, in which format it is, and how many saves it has
//! acknowledged.
//!
//! A database that syncs once per save cannot tell an unfinished last write from a finished one
//! that was damaged later: it sees that the last commit does not verify, and goes back to the one
//! before. The marker can tell. It is written after every save, without a sync of its own, so it is
//! never ahead of the database; a database that is behind it has lost something.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Error, ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};

/// The version of what is in a directory. An older program refuses a newer one.
const FORMAT: u32 = 1;
const MAGIC: [u8; 8] = *b"lraftdir";
const LENGTH: usize = 28;

/// How far a directory has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The database is being created; nothing was ever acknowledged.
    Creating,
    /// In use, or left behind by a crash.
    Open,
    /// Closed, with everything synced.
    Closed,
}

/// The file `acknowledged`, locked for as long as this lives.
#[derive(Debug)]
pub(crate) struct Marker {
    file: File,
    path: PathBuf,
}

impl Drop for Marker {
    /// Gives the lock back at once. Closing the file would not, while a process that this one has
    /// just forked still holds a copy of it.
    fn drop(&mut self) {
        let _ = self.file.unlock();
    }
}

impl Marker {
    /// Locks the marker of a directory, and creates it first if `create` is set.
    pub(crate) fn lock(directory: &Path, write: bool, create: bool) -> io::Result<Marker> {
        let path = directory.join("acknowledged");
        let mut options = OpenOptions::new();
        let file = options.read(true).write(write).create(create).open(&path).map_err(|error| {
            let remedy = match error.kind() {
                ErrorKind::NotFound => "no replica has kept anything here: check the path",
                ErrorKind::PermissionDenied => "give this user the right to read and write it",
                _ => "check the disk and the path",
            };
            Error::new(error.kind(), format!("{}: {error}; {remedy}", path.display()))
        })?;
        match file.try_lock() {
            Ok(()) => Ok(Marker { file, path }),
            Err(TryLockError::WouldBlock) => Err(Error::new(
                ErrorKind::ResourceBusy,
                format!(
                    "{}: a replica or a tool has this directory open; stop it first, or give each \
                     replica a directory of its own",
                    directory.display()
                ),
            )),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// What is recorded; nothing in a file that was just created.
    pub(crate) fn read(&mut self) -> io::Result<Option<(Stage, u64)>> {
        let mut bytes = Vec::new();
        self.file.rewind()?;
        (&self.file).take(2 * LENGTH as u64).read_to_end(&mut bytes)?;
        if bytes.is_empty() {
            return Ok(None);
        }
        let found = |finding: &str| {
            let path = self.path.display();
            let remedy = crate::error::REMEDY;
            Error::new(ErrorKind::InvalidData, format!("{path} is damaged: {finding}. {remedy}"))
        };
        let (body, sum) = bytes.split_at_checked(LENGTH - 4).ok_or_else(|| found("cut short"))?;
        if sum != crc32fast::hash(body).to_le_bytes() || body[..8] != MAGIC {
            return Err(found("its checksum does not match its content"));
        }
        let format = u32::from_le_bytes(body[8..12].try_into().expect("four bytes"));
        if format > FORMAT {
            let path = self.path.display();
            let text = format!(
                "{path}: written in format {format}, this program knows {FORMAT} and below; use \
                 the newer version of the program that wrote it"
            );
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        let stage = match body[12] {
            0 => Stage::Creating,
            1 => Stage::Open,
            2 => Stage::Closed,
            _ => return Err(found("it is in no known stage")),
        };
        Ok(Some((stage, u64::from_le_bytes(body[16..24].try_into().expect("eight bytes")))))
    }

    /// Records that so many saves are durable. Survives the death of the process at once, and that
    /// of the machine after [`sync`](Self::sync) or when the system gets round to it.
    pub(crate) fn write(&mut self, stage: Stage, saves: u64) -> io::Result<()> {
        let mut bytes = [0; LENGTH];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[12] = stage as u8;
        bytes[16..24].copy_from_slice(&saves.to_le_bytes());
        let sum = crc32fast::hash(&bytes[..LENGTH - 4]);
        bytes[LENGTH - 4..].copy_from_slice(&sum.to_le_bytes());
        self.file.rewind()?;
        self.file.write_all(&bytes)
    }

    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}
