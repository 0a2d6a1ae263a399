//! How frames travel: one connection from each member to each other, one thread at either end.
//!
//! Everything may be lost, and what would block is: replicas and outboxes send again.

use crate::frame::{Frames, Packet};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use log::{debug, info, warn};
use std::collections::HashMap;
use std::io::{self, BufReader, Error, ErrorKind, Read, Result, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Packets that may wait to be sent to one member. More are dropped.
const QUEUE: usize = 1024;
/// Connections to this member that are served at once. More are closed.
const CONNECTIONS: usize = 128;
/// A connection is closed if it takes longer than this from one frame to the next.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a connection may have nothing to say before it says so.
const PING: Duration = Duration::from_secs(2);
/// The pause after the first failed attempt to connect, and after the last of many.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Starts a thread that sends packets to a member. It ends once the queue is dropped and `stopped`
/// is disconnected.
pub(crate) fn dial(
    to: SocketAddr, frames: Frames, stopped: Receiver<()>,
) -> Result<(Sender<Packet>, JoinHandle<()>)> {
    let (sender, queue) = bounded(QUEUE);
    let life = move || {
        let mut pause = BACK_OFF.0;
        loop {
            let result = connect(to).and_then(|stream| {
                info!("connected to {to}");
                pause = BACK_OFF.0;
                send_all(stream, frames, &queue)
            });
            let Err(error) = result else { return };
            debug!("no connection to {to} for {pause:?}: {error}");
            match stopped.recv_timeout(pause) {
                Err(RecvTimeoutError::Timeout) => pause = (2 * pause).min(BACK_OFF.1),
                _ => return,
            }
            // It is stale by now.
            queue.try_iter().take(QUEUE).for_each(drop);
        }
    };
    Ok((sender, thread::Builder::new().name(format!("to {to}")).spawn(life)?))
}

fn connect(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, BACK_OFF.1)?;
    // Where nobody listens, the system may by chance connect a socket on this machine to itself.
    if stream.local_addr()? == to {
        return Err(Error::new(ErrorKind::ConnectionRefused, "nobody listens there"));
    }
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Sends what is in the queue. Ends well when the queue is dropped.
fn send_all(mut stream: TcpStream, frames: Frames, queue: &Receiver<Packet>) -> Result<()> {
    loop {
        let packet = match queue.recv_timeout(PING) {
            Ok(packet) => packet,
            Err(RecvTimeoutError::Timeout) => Packet::Ping,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        };
        stream.write_all(&frames.encode(&packet)?)?;
    }
}

/// Listens for the other members, and for whoever else there is.
pub(crate) struct Listener {
    address: SocketAddr,
    served: Arc<Served>,
    thread: Option<JoinHandle<()>>,
}

/// The connections that are served, and how to end them.
#[derive(Default)]
struct Served {
    halt: AtomicBool,
    streams: Mutex<HashMap<u64, (TcpStream, JoinHandle<()>)>>,
}

impl Served {
    fn streams(&self) -> MutexGuard<'_, HashMap<u64, (TcpStream, JoinHandle<()>)>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listener {
    /// Hands in every packet that arrives, from the threads of the connections.
    pub(crate) fn start(
        address: SocketAddr, frames: Frames, deliver: impl Fn(Packet) + Clone + Send + 'static,
    ) -> Result<Listener> {
        let listener = TcpListener::bind(address).map_err(|error| {
            Error::new(error.kind(), format!("cannot listen on {address}: {error}"))
        })?;
        let served = Arc::new(Served::default());
        let life = {
            let served = served.clone();
            move || accept_all(&listener, &served, frames, deliver)
        };
        let thread = Some(thread::Builder::new().name(format!("at {address}")).spawn(life)?);
        Ok(Listener { address, served, thread })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.served.halt.store(true, Ordering::Release);
        // Wakes the thread that accepts, which must end before the last connection can be closed.
        let woken = TcpStream::connect_timeout(&self.address, BACK_OFF.1);
        if let (Some(thread), true) = (self.thread.take(), woken.is_ok()) {
            let _ = thread.join();
        }
        let streams = std::mem::take(&mut *self.served.streams());
        for (stream, thread) in streams.into_values() {
            let _ = stream.shutdown(Shutdown::Both);
            let _ = thread.join();
        }
    }
}

fn accept_all(
    listener: &TcpListener, served: &Served, frames: Frames,
    deliver: impl Fn(Packet) + Clone + Send + 'static,
) {
    for number in 0.. {
        let accepted = listener.accept();
        if served.halt.load(Ordering::Acquire) {
            return;
        }
        let deliver = deliver.clone();
        let result = accepted.and_then(|(stream, from)| {
            let mut streams = served.streams();
            streams.retain(|_, (_, thread)| !thread.is_finished());
            if streams.len() >= CONNECTIONS {
                warn!("refused a connection from {from}: {CONNECTIONS} are served");
                return Ok(());
            }
            let ours = stream.try_clone()?;
            let life = move || serve(stream, from, frames, deliver);
            let thread = thread::Builder::new().name(format!("from {from}")).spawn(life)?;
            streams.insert(number, (ours, thread));
            Ok(())
        });
        if let Err(error) = result {
            warn!("cannot accept a connection: {error}");
            // Most likely there are too many open files, which takes a moment to change.
            thread::sleep(BACK_OFF.0);
        }
    }
}

/// Hands in what one connection brings, until it ends or brings what is no frame.
fn serve(stream: TcpStream, from: SocketAddr, frames: Frames, deliver: impl Fn(Packet)) {
    let mut reader = BufReader::new(Impatient { stream, deadline: Instant::now() });
    let error = loop {
        reader.get_mut().deadline = Instant::now() + PATIENCE;
        match frames.read(&mut reader) {
            Ok(packet) => deliver(packet),
            Err(error) => break error,
        }
    };
    match error.kind() {
        ErrorKind::InvalidData => warn!("closed the connection from {from}: {error}"),
        _ => info!("the connection from {from} is over: {error}"),
    }
    // A clone of the stream is kept, so dropping this one would not close it.
    let _ = reader.get_ref().stream.shutdown(Shutdown::Both);
}

/// Reads until a deadline, however slowly the bytes trickle in.
struct Impatient {
    stream: TcpStream,
    deadline: Instant,
}

impl Read for Impatient {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::new(ErrorKind::TimedOut, "the frame took too long"));
        }
        self.stream.set_read_timeout(Some(left))?;
        self.stream.read(buffer)
    }
}
