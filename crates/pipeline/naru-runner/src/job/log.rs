//! The pod's log as the job writes it: every line through the mask, and between them the job's own.

use crate::mask::Mask;
use crate::protocol::{Event, to_line};
use naru_objects::Diagnostic;
use std::borrow::Cow;
use std::io::{BufWriter, Write};

/// So many remarks about files are kept with the job; more would drown the ones that matter, and the object.
pub const ANNOTATIONS_MAX: usize = 100;

/// A longer remark is cut: it is kept with the job's object.
const ANNOTATION_BYTES_MAX: usize = 4 * 1024;

pub struct Log<'a> {
    out: BufWriter<&'a mut (dyn Write + Send)>,
    pub mask: Mask,
    nonce: String,
    /// Whether `::debug::` is shown.
    pub debug: bool,
    pub annotations: Vec<Diagnostic>,
}

impl<'a> Log<'a> {
    pub fn new(out: &'a mut (dyn Write + Send), nonce: &str) -> Self {
        let out = BufWriter::with_capacity(64 * 1024, out);
        Self { out, mask: Mask::default(), nonce: nonce.to_owned(), debug: false, annotations: Vec::new() }
    }

    /// A line for people. That nobody reads it any more is no reason to end.
    pub fn say(&mut self, line: &str) {
        // A value of several lines in a message of ours.
        for line in line.split('\n') {
            let line = self.mask.apply(line);
            let _ = self.out.write_all(line.as_bytes());
            let _ = self.out.write_all(b"\n");
        }
    }

    pub fn debug(&mut self, message: &str) {
        if self.debug {
            self.say(&format!("##[debug]{message}"));
        }
    }

    /// Shows a remark and keeps it with the job.
    pub fn annotate(&mut self, note: Diagnostic) {
        let line = note.message.clone();
        self.annotate_as(note, &line);
    }

    /// As [`Self::annotate`], with the line in which it was found.
    pub fn annotate_as(&mut self, mut note: Diagnostic, line: &str) {
        self.say(&format!("##[{}]{line}", note.severity));
        if self.annotations.len() < ANNOTATIONS_MAX {
            note.message = self.mask.apply(&note.message).into_owned();
            note.file = self.mask.apply(&note.file).into_owned();
            let end = floor_char_boundary(&note.message, ANNOTATION_BYTES_MAX);
            note.message.truncate(end);
            self.annotations.push(note);
        }
    }

    /// An error or warning that concerns no file.
    pub fn remark(&mut self, severity: &str, message: &str) {
        self.annotate(Diagnostic {
            severity: severity.to_owned(),
            message: message.to_owned(),
            ..Diagnostic::default()
        });
    }

    pub fn tell(&mut self, event: &Event) {
        let line = to_line(&self.nonce, event);
        let _ = writeln!(self.out, "{line}");
        self.flush();
    }

    pub fn flush(&mut self) {
        let _ = self.out.flush();
    }

    pub fn masked<'b>(&self, text: &'b str) -> Cow<'b, str> {
        self.mask.apply(text)
    }
}

/// The last place at or before `at` where a text may be cut.
pub fn floor_char_boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|it| text.is_char_boundary(*it)).unwrap_or(0)
}
