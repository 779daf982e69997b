//! What libcontainer traces while it fails: the only place where it names the cause.
//!
//! Its processes report to each other in one line of text without the chain of errors; the details
//! go to `tracing`. In a helper nobody listens, so this listener appends errors to a file that is
//! opened before the container's root is entered.

use std::fmt::{Debug, Write as _};
use std::fs::File;
use std::io::Write;
use std::path::Path;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

struct ErrorFile(File);

/// For a process that will exec or exit soon; a second call has no effect.
pub fn write_errors_to(path: &Path) {
    if let Ok(file) = File::options().create(true).append(true).open(path) {
        let _ = tracing::subscriber::set_global_default(ErrorFile(file));
    }
}

impl Subscriber for ErrorFile {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR && metadata.is_event()
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        struct Line(String);
        impl Visit for Line {
            fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
                let _ = match field.name() {
                    "message" => write!(self.0, "{value:?} "),
                    name => write!(self.0, "({name}: {value:?}) "),
                };
            }
        }
        let mut line = Line(String::new());
        event.record(&mut line);
        let text = line.0.trim_end().replace('\n', " ") + "\n";
        let _ = (&self.0).write_all(text.as_bytes());
    }
}
