//! What goes in and out of containers: logs, attachments, input, terminals.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};

use super::{ANSWER_BYTES_MAX, Container, Phase, Pump, Shim, set_nonblocking};
use crate::config::Response;
use crate::log::{Splitter, Stream};
use crate::{attach, sys};

/// The connection carries a container's streams.
pub(super) struct Attached {
    pub container: String,
    stdin: bool,
}

/// A container's standard input.
pub(super) struct Input {
    pub pipe: File,
    pub once: bool,
    pub pending: Vec<u8>,
    /// Close when `pending` is written.
    pub ending: bool,
}

impl Container {
    /// From now on the terminal is input and output at once.
    pub(super) fn take_terminal(&mut self, master: OwnedFd) {
        let master = File::from(master);
        set_nonblocking(&master);
        if let (Some(once), Ok(pipe)) = (self.terminal_input, master.try_clone()) {
            self.input = Some(Input { pipe, once, pending: Vec::new(), ending: false });
        }
        self.pumps = vec![Pump { pipe: master, splitter: Splitter::new(Stream::Out) }];
    }
}

impl Shim {
    pub(super) fn attach(&mut self, number: usize, container: String, stdin: bool, early: bool) {
        let response = match self.containers.get(&container) {
            Some(it) if early && matches!(it.phase, Phase::Starting { .. }) => Response::Done,
            None if early => Response::Done,
            Some(it) if !matches!(it.phase, Phase::Running(_)) => {
                Response::Error(format!("container {container} is not running"))
            }
            None => Response::Error(format!("there is no container {container}")),
            Some(_) => Response::Done,
        };
        let attached = matches!(response, Response::Done);
        self.answer(number, &response);
        if let Some(client) = self.clients.get_mut(&number).filter(|_| attached) {
            client.attached = Some(Attached { container, stdin });
        }
    }

    /// What an attached client sends: input, its end, the size of its terminal.
    pub(super) fn take_frames(&mut self, number: usize) {
        let Some(client) = self.clients.get_mut(&number) else { return };
        let Some(attached) = &client.attached else { return };
        let Some(container) = self.containers.get_mut(&attached.container) else { return };
        if matches!(container.phase, Phase::Starting { .. }) {
            return;
        }
        while let Some((kind, payload)) = attach::take_frame(&mut client.input) {
            match (kind, &mut container.input) {
                (attach::INPUT, Some(input)) if attached.stdin && !input.ending => {
                    input.pending.extend_from_slice(&payload);
                }
                (attach::INPUT_END, Some(input)) if attached.stdin && input.once => input.ending = true,
                (attach::RESIZE, _) if container.terminal && payload.len() == 4 => {
                    let number = |at: usize| u16::from_be_bytes([payload[at], payload[at + 1]]);
                    if let Some(pump) = container.pumps.first() {
                        sys::set_terminal_size(pump.pipe.as_raw_fd(), number(0), number(2));
                    }
                }
                _ => {}
            }
        }
        let id = attached.container.clone();
        self.write_input(&id);
    }

    pub(super) fn write_input(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(input) = &mut container.input else { return };
        while !input.pending.is_empty() {
            match input.pipe.write(&input.pending) {
                Ok(count) => drop(input.pending.drain(..count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {
                    // Nobody reads it any more.
                    container.input = None;
                    return;
                }
            }
        }
        if input.ending {
            if container.terminal {
                // End of input on a terminal is Ctrl-D; the terminal itself stays for its output.
                let _ = input.pipe.write(&[4]);
            }
            container.input = None;
        }
    }

    /// An attachment that wrote to an input meant for one ends it.
    pub(super) fn detach(&mut self, attached: &Attached) {
        if let Some(input) = self.containers.get_mut(&attached.container).and_then(|it| it.input.as_mut())
            && attached.stdin
            && input.once
        {
            input.ending = true;
            self.write_input(&attached.container);
        }
    }

    pub(super) fn read_output(&mut self, id: &str, stream: usize) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(pump) = container.pumps.get_mut(stream) else { return };
        let mut buffer = [0; 64 * 1024];
        let now = sys::now_nanoseconds();
        let mut records = Vec::new();
        let channel = pump.splitter.stream();
        match pump.pipe.read(&mut buffer) {
            Ok(0) => {
                pump.splitter.finish(now, &mut records);
                container.pumps.remove(stream);
            }
            Ok(count) => {
                pump.splitter.push(&buffer[..count], now, &mut records);
                for client in self.clients.values_mut() {
                    if client.attached.as_ref().is_some_and(|it| it.container == id) {
                        if client.output.len() < ANSWER_BYTES_MAX {
                            attach::put_frame(&mut client.output, channel.frame(), &buffer[..count]);
                        } else {
                            client.gone = true;
                        }
                    }
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return,
            // EIO is how a terminal says that its last writer is gone.
            Err(_) => {
                pump.splitter.finish(now, &mut records);
                container.pumps.remove(stream);
            }
        }
        // A full disk loses log lines; it must not stop the program that writes them.
        if let Some(log) = &mut container.log
            && !records.is_empty()
            && let Err(error) = log.append(&records)
        {
            sys::complain!("cannot write the log of {id}: {error}");
        }
    }
}
