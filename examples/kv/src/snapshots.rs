//! Snapshots of the store, as files.
//!
//! What the library keeps and sends is a handle. The bytes are in a file of the node's directory,
//! written record by record from a frozen copy of the store that shares everything with the live
//! one, so the state is never in memory twice. Most of a file is written in the background, before a
//! snapshot is asked for; what remains then is what has changed since.
//!
//! A file is a sequence of records, each the length of what follows in four bytes, least significant
//! first, and a `Record` as postcard encodes it. The last one tells how much there must be. A
//! file's checksum is the CRC-32 of all of it, and ends it in four bytes.

use crate::command::*;
use crate::store::{SessionState, Store};
use imbl::ordmap::DiffItem;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Error, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};

/// What every file begins with.
const MAGIC: &[u8; 8] = b"LRKVSNP1";
/// No record is longer: a key and the largest transaction, with room to spare.
const MAX_RECORD: u32 = 256 * 1024 * 1024;
const FINISHED: &str = "snapshot";
const PARTIAL: &str = "partial";

/// One piece of a file.
#[derive(Serialize, Deserialize)]
enum Record<'a> {
    Key {
        key: &'a str,
        value: Versioned,
    },
    /// A key that was put in an earlier record is gone.
    Removed {
        key: &'a str,
    },
    Session {
        client: ClientId,
        state: SessionState,
    },
    Node {
        address: Address,
    },
    End {
        revision: Revision,
        commands: u64,
        keys: u64,
        sessions: u64,
        nodes: u64,
    },
}

/// A snapshot: which file it is in and what must be in there.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Handle(Arc<Inner>);

#[derive(Debug, Serialize, Deserialize)]
struct Inner {
    name: String,
    length: u64,
    checksum: u32,
    /// The state, if somebody has read it already.
    #[serde(skip)]
    loaded: Mutex<Option<Store>>,
    /// Why there is no file.
    #[serde(skip)]
    failure: Option<Error>,
}

impl PartialEq for Handle {
    fn eq(&self, other: &Handle) -> bool {
        let parts = |it: &Handle| (it.0.name.clone(), it.0.length, it.0.checksum);
        parts(self) == parts(other)
    }
}

impl Eq for Handle {}

impl Handle {
    fn new(name: String, written: Written) -> Handle {
        let Written { length, checksum, .. } = written;
        Handle(Arc::new(Inner { name, length, checksum, loaded: Mutex::default(), failure: None }))
    }

    /// Stands for a snapshot that could not be written. Whoever is to save it must fail.
    fn failed(error: Error) -> Handle {
        let (name, length, checksum, loaded) = Default::default();
        Handle(Arc::new(Inner { name, length, checksum, loaded, failure: Some(error) }))
    }

    /// The name of the file.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The length of the file.
    pub fn length(&self) -> u64 {
        self.0.length
    }

    /// The file's checksum.
    pub fn checksum(&self) -> u32 {
        self.0.checksum
    }

    /// Why there is no file, if there is none.
    pub fn failure(&self) -> Option<Error> {
        self.0.failure.as_ref().map(|error| Error::new(error.kind(), error.to_string()))
    }
}

/// The snapshots in a node's directory.
#[derive(Clone, Debug)]
pub struct Snapshots {
    directory: Arc<PathBuf>,
    /// The handles that may still be in use somewhere in this process.
    live: Arc<Mutex<Vec<Weak<Inner>>>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Snapshots {
    /// Looks after the snapshots in a directory, which is created. What was left unfinished in there
    /// is removed.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(directory: &Path) -> io::Result<Snapshots> {
        fs::create_dir_all(directory)?;
        for (path, extension) in files(directory)? {
            if extension == PARTIAL {
                fs::remove_file(path)?;
            }
        }
        let directory = Arc::new(directory.to_path_buf());
        Ok(Snapshots { directory, live: Arc::default() })
    }

    /// Where the file of a snapshot is.
    pub fn path(&self, handle: &Handle) -> PathBuf {
        self.directory.join(handle.name())
    }

    /// Where a snapshot that is being received is written.
    pub(crate) fn partial(&self, name: &str) -> PathBuf {
        self.directory.join(name).with_extension(PARTIAL)
    }

    /// Keeps a file for as long as the handle lives.
    pub(crate) fn adopt(&self, handle: &Handle) {
        let mut live = locked(&self.live);
        live.retain(|weak| weak.strong_count() > 0);
        live.push(Arc::downgrade(&handle.0));
    }

    /// Removes the files that nobody needs: neither is it this one, nor does a handle to it live.
    ///
    /// # Errors
    /// What the system says.
    pub fn sweep(&self, saved: Option<&Handle>) -> io::Result<()> {
        let live: Vec<_> = locked(&self.live).iter().filter_map(Weak::upgrade).collect();
        let needed = |path: &Path| {
            let name = path.file_name().unwrap_or_default();
            let names = live.iter().map(|inner| inner.name.as_str());
            names.chain(saved.map(Handle::name)).any(|live| live == name)
        };
        for (path, extension) in files(&self.directory)? {
            if extension == FINISHED && !needed(&path) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// Writes a store as the snapshot at this position. If a draft was begun for it, only what has
    /// changed since is written now.
    pub fn write(&self, store: &Store, draft: Option<Draft>, at: (usize, usize)) -> Handle {
        let draft = match draft {
            Some(draft) => Ok(draft),
            None => self.draft(&Store::default()),
        };
        match draft.and_then(|draft| self.finish(store, draft, at)) {
            Ok(handle) => handle,
            Err(error) => {
                let directory = self.directory.display();
                let text = format!(
                    "{directory}: cannot write a snapshot: {error}. Free some space or check the \
                     disk, and start again: whatever was acknowledged is there"
                );
                Handle::failed(Error::new(error.kind(), text))
            }
        }
    }

    /// Begins to write a copy of the store in the background.
    ///
    /// # Errors
    /// What the system says.
    pub fn draft(&self, store: &Store) -> io::Result<Draft> {
        let path = self.partial(&format!("draft-{:016x}", rand::random::<u64>()));
        let mut writer = Writer::new(BufWriter::new(File::create_new(&path)?))?;
        let base = store.clone();
        if base.is_empty() {
            return Ok(Draft { base, path, written: Background::Here(writer) });
        }
        let frozen = base.clone();
        let write = move || {
            writer.keys(&frozen)?;
            writer.out.flush()?;
            writer.out.get_ref().sync_data()?;
            Ok(writer)
        };
        let thread = thread::Builder::new().name("snapshot".into()).spawn(write)?;
        Ok(Draft { base, path, written: Background::Thread(thread) })
    }

    /// Completes a draft with what has changed since it was begun.
    fn finish(&self, store: &Store, draft: Draft, at: (usize, usize)) -> io::Result<Handle> {
        let (base, path) = (draft.base.clone(), draft.path.clone());
        let mut writer = draft.wait()?;
        for difference in base.keys.diff(&store.keys) {
            writer.record(&match difference {
                DiffItem::Add(key, value) => Record::Key { key, value: value.clone() },
                DiffItem::Update { new: (key, value), .. } => {
                    Record::Key { key, value: value.clone() }
                }
                DiffItem::Remove(key, _) => Record::Removed { key },
            })?;
        }
        writer.rest(store)?;
        let (out, written) = writer.end(store)?;
        out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        self.keep(&path, at, written)
    }

    /// Gives a file that is complete and durable its name.
    fn keep(&self, path: &Path, at: (usize, usize), written: Written) -> io::Result<Handle> {
        let name = format!("{}-{}-{:08x}.{FINISHED}", at.0, at.1, written.checksum);
        let handle = Handle::new(name, written);
        self.adopt(&handle);
        fs::rename(path, self.path(&handle))?;
        sync_directory(&self.directory)?;
        Ok(handle)
    }

    /// Takes in a file that was received: it must be what the handle says. The handle that is
    /// returned names the file here, and holds the state.
    ///
    /// # Errors
    /// If the file is something else, or what the system says.
    pub(crate) fn receive(
        &self, path: &Path, offered: &Handle, at: (usize, usize),
    ) -> io::Result<Handle> {
        let file = File::open(path)?;
        let (store, written) = read_store(BufReader::new(&file))?;
        if (written.length, written.checksum) != (offered.length(), offered.checksum()) {
            let text = format!(
                "{}: {} bytes with checksum {:08x} are not the snapshot that was offered, {} bytes \
                 with {:08x}",
                path.display(),
                written.length,
                written.checksum,
                offered.length(),
                offered.checksum()
            );
            return Err(Error::new(ErrorKind::InvalidData, text));
        }
        file.sync_all()?;
        let handle = self.keep(path, at, written)?;
        *locked(&handle.0.loaded) = Some(store);
        Ok(handle)
    }

    /// The state that a snapshot holds.
    ///
    /// # Errors
    /// If the file is missing or damaged.
    pub fn load(&self, handle: &Handle) -> io::Result<Store> {
        if let Some(store) = locked(&handle.0.loaded).take() {
            return Ok(store);
        }
        let path = self.path(handle);
        let explain = |error: Error| {
            let text = format!(
                "{}: {error}. The snapshot that the log builds upon is lost. If a quorum of the \
                 cluster lives, remove this node from the members and add a new one under a new id \
                 with an empty directory",
                path.display()
            );
            Error::new(ErrorKind::InvalidData, text)
        };
        let file = File::open(&path).map_err(explain)?;
        let (store, written) = read_store(BufReader::new(file)).map_err(explain)?;
        if (written.length, written.checksum) != (handle.length(), handle.checksum()) {
            return Err(explain(Error::other("the file is another snapshot than it should be")));
        }
        Ok(store)
    }

    /// Reads the state into memory, for a [`load`](Self::load) that is to take no time.
    pub(crate) fn preload(&self, handle: &Handle) -> io::Result<()> {
        let store = self.load(handle)?;
        *locked(&handle.0.loaded) = Some(store);
        Ok(())
    }
}

/// The files in a directory, with their extensions.
fn files(directory: &Path) -> io::Result<Vec<(PathBuf, String)>> {
    let paths = fs::read_dir(directory)?.map(|entry| entry.map(|entry| entry.path()));
    let extension = |path: &Path| path.extension().unwrap_or_default().to_string_lossy().into();
    paths.map(|path| path.map(|path| (path.clone(), extension(&path)))).collect()
}

/// Makes the names in a directory durable, where the system knows that.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(directory)?.sync_all() } else { Ok(()) }
}

/// A snapshot that is not asked for yet.
#[derive(Debug)]
pub struct Draft {
    base: Store,
    path: PathBuf,
    written: Background,
}

#[derive(Debug)]
enum Background {
    Here(Writer<BufWriter<File>>),
    Thread(JoinHandle<io::Result<Writer<BufWriter<File>>>>),
}

impl Draft {
    fn wait(self) -> io::Result<Writer<BufWriter<File>>> {
        match self.written {
            Background::Here(writer) => Ok(writer),
            Background::Thread(thread) => thread
                .join()
                .unwrap_or_else(|_| Err(Error::other("the thread that wrote it has panicked"))),
        }
    }

    /// Removes what was written so far.
    pub(crate) fn discard(self) {
        let path = self.path.clone();
        let remove = move || {
            drop(self.wait());
            // Otherwise the next start removes it.
            let _ = fs::remove_file(path);
        };
        let _ = thread::Builder::new().name("snapshot".into()).spawn(remove);
    }
}

/// What a file has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) length: u64,
    pub(crate) checksum: u32,
    pub(crate) revision: Revision,
    pub(crate) keys: usize,
}

#[derive(Debug)]
struct Writer<W> {
    out: W,
    checksum: crc32fast::Hasher,
    length: u64,
    buffer: Vec<u8>,
}

impl<W: Write> Writer<W> {
    fn new(out: W) -> io::Result<Writer<W>> {
        let mut writer =
            Writer { out, checksum: crc32fast::Hasher::new(), length: 0, buffer: Vec::new() };
        writer.bytes(MAGIC)?;
        Ok(writer)
    }

    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.checksum.update(bytes);
        self.length += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn record(&mut self, record: &Record<'_>) -> io::Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        buffer.extend([0; 4]);
        let mut buffer = postcard::to_extend(record, buffer).map_err(Error::other)?;
        let length = u32::try_from(buffer.len() - 4).map_err(Error::other)?;
        buffer[..4].copy_from_slice(&length.to_le_bytes());
        self.bytes(&buffer)?;
        self.buffer = buffer;
        Ok(())
    }

    fn keys(&mut self, store: &Store) -> io::Result<()> {
        store
            .keys
            .iter()
            .try_for_each(|(key, value)| self.record(&Record::Key { key, value: value.clone() }))
    }

    /// Everything but the keys.
    fn rest(&mut self, store: &Store) -> io::Result<()> {
        for (client, state) in &store.sessions {
            self.record(&Record::Session { client: *client, state: state.clone() })?;
        }
        for address in store.nodes.values() {
            self.record(&Record::Node { address: address.clone() })?;
        }
        Ok(())
    }

    fn end(mut self, store: &Store) -> io::Result<(W, Written)> {
        let [keys, sessions, nodes] =
            [store.keys.len(), store.sessions.len(), store.nodes.len()].map(|it| it as u64);
        let (revision, commands) = (store.revision, store.commands);
        self.record(&Record::End { revision, commands, keys, sessions, nodes })?;
        let checksum = self.checksum.clone().finalize();
        self.out.write_all(&checksum.to_le_bytes())?;
        let (length, keys) = (self.length + 4, store.keys.len());
        Ok((self.out, Written { length, checksum, revision, keys }))
    }
}

/// Writes a store, as a snapshot file has it.
pub(crate) fn write_store(store: &Store, out: impl Write) -> io::Result<Written> {
    let mut writer = Writer::new(out)?;
    writer.keys(store)?;
    writer.rest(store)?;
    let (mut out, written) = writer.end(store)?;
    out.flush()?;
    Ok(written)
}

fn damaged<R>(finding: impl Into<String>) -> io::Result<R> {
    Err(Error::new(ErrorKind::InvalidData, format!("it is damaged: {}", finding.into())))
}

/// Reads what [`write_store`] or a draft has written.
pub(crate) fn read_store(input: impl Read) -> io::Result<(Store, Written)> {
    let mut reader = Reader { input, checksum: crc32fast::Hasher::new(), length: 0 };
    let mut magic = [0; 8];
    reader.bytes(&mut magic)?;
    if &magic != MAGIC {
        return damaged("it does not begin like a snapshot");
    }
    let (mut store, mut buffer) = (Store::default(), Vec::new());
    loop {
        match reader.record(&mut buffer)? {
            Record::Key { key, value } => _ = store.keys.insert(Arc::from(key), value),
            Record::Removed { key } => _ = store.keys.remove(key),
            Record::Session { client, state } => {
                store.usage.insert(state.used, client);
                store.sessions.insert(client, state);
            }
            Record::Node { address } => _ = store.nodes.insert(address.id, address),
            Record::End { revision, commands, keys, sessions, nodes } => {
                (store.revision, store.commands) = (revision, commands);
                let found = [store.keys.len(), store.sessions.len(), store.nodes.len()];
                if found.map(|count| count as u64) != [keys, sessions, nodes] {
                    return damaged("something in it is missing");
                }
                return reader.end(store);
            }
        }
    }
}

struct Reader<R> {
    input: R,
    checksum: crc32fast::Hasher,
    length: u64,
}

impl<R: Read> Reader<R> {
    fn exact(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        self.length += buffer.len() as u64;
        match self.input.read_exact(buffer) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => damaged("it is cut short"),
            result => result,
        }
    }

    fn bytes(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        self.exact(buffer)?;
        self.checksum.update(buffer);
        Ok(())
    }

    fn record<'a>(&mut self, buffer: &'a mut Vec<u8>) -> io::Result<Record<'a>> {
        let mut length = [0; 4];
        self.bytes(&mut length)?;
        let length = u32::from_le_bytes(length);
        if length > MAX_RECORD {
            return damaged(format!("a record of {length} bytes"));
        }
        // Grows with what there is, so that a wrong length takes no memory.
        buffer.clear();
        let read = self.input.by_ref().take(length.into()).read_to_end(buffer)?;
        if read < length as usize {
            return damaged("it is cut short");
        }
        self.length += read as u64;
        self.checksum.update(buffer);
        postcard::from_bytes(buffer).or_else(|error| damaged(format!("a record: {error}")))
    }

    fn end(mut self, store: Store) -> io::Result<(Store, Written)> {
        let checksum = self.checksum.clone().finalize();
        let mut expected = [0; 4];
        self.exact(&mut expected)?;
        if u32::from_le_bytes(expected) != checksum {
            return damaged("its checksum is wrong");
        }
        if self.input.read(&mut [0])? > 0 {
            return damaged("it goes on after its end");
        }
        let (length, revision, keys) = (self.length, store.revision, store.keys.len());
        Ok((store, Written { length, checksum, revision, keys }))
    }
}
