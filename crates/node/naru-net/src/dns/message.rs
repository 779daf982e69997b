//! DNS messages (RFC 1035, and the size of RFC 6891): questions in, answers out.
//!
//! Only what the cluster's own zone needs; whatever else is asked goes to another server as it came. So
//! this is less than a DNS library would bring, and every byte of it comes from pods: each access is
//! checked.

use std::net::Ipv4Addr;

pub const A: u16 = 1;
pub const CNAME: u16 = 5;
pub const SOA: u16 = 6;
pub const PTR: u16 = 12;
pub const TXT: u16 = 16;
pub const SRV: u16 = 33;
pub const ANY: u16 = 255;
const OPT: u16 = 41;
const INTERNET: u16 = 1;
/// Seconds that an answer may be kept: as short as CoreDNS' own.
const TTL_SECONDS: u32 = 5;
const NAME_BYTES_MAX: usize = 255;

/// The one question of a message.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// Lower case, without the dot at the end.
    pub name: String,
    pub kind: u16,
    /// The largest answer that the asker takes over UDP; 0 when he does not say.
    pub size_max: usize,
    /// Where the question ends in the message.
    end: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Data {
    Address(Ipv4Addr),
    /// Of an alias or a pointer.
    Name(u16, String),
    Service {
        port: u16,
        target: String,
    },
    Text(String),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    pub name: String,
    pub data: Data,
}

impl Record {
    pub fn address(name: &str, address: Ipv4Addr) -> Record {
        Record { name: name.to_string(), data: Data::Address(address) }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Code {
    Fine = 0,
    ServerFailure = 2,
    NoSuchName = 3,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub code: Code,
    pub records: Vec<Record>,
    pub additional: Vec<Record>,
    /// An alias leads to this name outside of the cluster.
    pub outside: Option<String>,
    /// The zone that answers, for the record that says how long a "no" may be kept.
    pub zone: Option<&'static str>,
}

impl Answer {
    pub fn failure() -> Answer {
        Answer { code: Code::ServerFailure, records: vec![], additional: vec![], outside: None, zone: None }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

/// A name and where it ends. Pointers lead backwards only, so it ends.
fn name_at(bytes: &[u8], start: usize) -> Option<(String, usize)> {
    let (mut at, mut end, mut name) = (start, None, String::new());
    loop {
        let length = usize::from(*bytes.get(at)?);
        match length {
            0 => return Some((name, end.unwrap_or(at + 1))),
            1..=63 => {
                let label = bytes.get(at + 1..at + 1 + length)?;
                if !name.is_empty() {
                    name.push('.');
                }
                // Names of the cluster are ASCII; others are not looked at, only passed on.
                name.extend(label.iter().map(|it| char::from(it.to_ascii_lowercase())));
                if name.len() > NAME_BYTES_MAX {
                    return None;
                }
                at += 1 + length;
            }
            192..=255 => {
                let target = usize::from(u16_at(bytes, at)? & 0x3fff);
                end = end.or(Some(at + 2));
                if target >= at {
                    return None;
                }
                at = target;
            }
            _ => return None,
        }
    }
}

impl Question {
    /// `None` when the message is no query with one question.
    pub fn parse(bytes: &[u8]) -> Option<Question> {
        let flags = u16_at(bytes, 2)?;
        let is_query = flags & 0x8000 == 0 && flags & 0x7800 == 0;
        if !is_query || u16_at(bytes, 4)? != 1 {
            return None;
        }
        let (name, at) = name_at(bytes, 12)?;
        let (kind, class, end) = (u16_at(bytes, at)?, u16_at(bytes, at + 2)?, at + 4);
        if class != INTERNET {
            return None;
        }
        // The extension is the first additional record of every resolver that has it.
        let plain = u16_at(bytes, 6)? == 0 && u16_at(bytes, 8)? == 0 && u16_at(bytes, 10)? > 0;
        let extended = plain && bytes.get(end) == Some(&0) && u16_at(bytes, end + 1) == Some(OPT);
        let size_max = if extended { usize::from(u16_at(bytes, end + 3)?) } else { 0 };
        Some(Question { name, kind, size_max, end })
    }
}

fn put_name(out: &mut Vec<u8>, name: &str) {
    for label in name.split('.').filter(|it| !it.is_empty()) {
        let label = &label.as_bytes()[..label.len().min(63)];
        out.push(label.len() as u8);
        out.extend_from_slice(label);
    }
    out.push(0);
}

fn put_record(out: &mut Vec<u8>, name: &str, kind: u16, data: &[u8]) {
    put_name(out, name);
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&INTERNET.to_be_bytes());
    out.extend_from_slice(&TTL_SECONDS.to_be_bytes());
    out.extend_from_slice(&(data.len() as u16).to_be_bytes());
    out.extend_from_slice(data);
}

fn put(out: &mut Vec<u8>, record: &Record) {
    let mut data = Vec::new();
    let kind = match &record.data {
        Data::Address(address) => {
            data.extend_from_slice(&address.octets());
            A
        }
        Data::Name(kind, target) => {
            put_name(&mut data, target);
            *kind
        }
        Data::Service { port, target } => {
            data.extend_from_slice(&[0, 0, 0, 100]);
            data.extend_from_slice(&port.to_be_bytes());
            put_name(&mut data, target);
            SRV
        }
        Data::Text(text) => {
            data.push(text.len().min(255) as u8);
            data.extend_from_slice(&text.as_bytes()[..text.len().min(255)]);
            TXT
        }
    };
    put_record(out, &record.name, kind, &data);
}

/// The answer as bytes; what does not fit is left out and said to be.
pub fn encode(query: &[u8], question: &Question, answer: &Answer, size_max: usize) -> Vec<u8> {
    let mut out = query[..question.end].to_vec();
    let wants_recursion = query[2] & 1;
    // An answer, by the authority for it, of one who recurses.
    out[2] = 0x84 | wants_recursion;
    out[3] = 0x80 | answer.code as u8;
    let mut counts = [0u16; 3];
    let mut truncated = false;
    for (section, records) in [(0, &answer.records), (2, &answer.additional)] {
        for record in records {
            let before = out.len();
            put(&mut out, record);
            if out.len() > size_max {
                out.truncate(before);
                truncated |= section == 0;
                break;
            }
            counts[section] += 1;
        }
        if let (0, true, Some(zone)) = (section, answer.records.is_empty(), answer.zone) {
            let mut data = Vec::new();
            put_name(&mut data, &format!("ns.dns.{zone}"));
            put_name(&mut data, &format!("hostmaster.{zone}"));
            for number in [1u32, 7200, 1800, 86400, TTL_SECONDS] {
                data.extend_from_slice(&number.to_be_bytes());
            }
            put_record(&mut out, zone, SOA, &data);
            counts[1] += 1;
        }
    }
    if truncated {
        out[2] |= 2;
    }
    for (at, count) in counts.into_iter().enumerate() {
        out[6 + at * 2..8 + at * 2].copy_from_slice(&count.to_be_bytes());
    }
    out
}

/// A question for the address of a name.
pub fn query_for_address(name: &str) -> Vec<u8> {
    let mut out = vec![0x4e, 0x52, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    put_name(&mut out, name);
    out.extend_from_slice(&[0, 1, 0, 1]);
    out
}

/// The addresses in an answer of another server.
pub fn addresses(bytes: &[u8]) -> Vec<Ipv4Addr> {
    let read = || -> Option<Vec<Ipv4Addr>> {
        let count = u16_at(bytes, 6)?;
        let (_, mut at) = name_at(bytes, 12)?;
        at += 4;
        let mut found = Vec::new();
        for _ in 0..count {
            let (_, end) = name_at(bytes, at)?;
            let (kind, length) = (u16_at(bytes, end)?, usize::from(u16_at(bytes, end + 8)?));
            let data = bytes.get(end + 10..end + 10 + length)?;
            if let (A, [a, b, c, d]) = (kind, data) {
                found.push(Ipv4Addr::new(*a, *b, *c, *d));
            }
            at = end + 10 + length;
        }
        Some(found)
    };
    read().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_answered_in_bytes() {
        let query = query_for_address("Web.default.svc.cluster.local");
        let question = Question::parse(&query).expect("a question");
        assert_eq!((question.name.as_str(), question.kind), ("web.default.svc.cluster.local", A));
        let address = Ipv4Addr::new(10, 96, 0, 9);
        let answer = Answer {
            code: Code::Fine,
            records: vec![Record::address(&question.name, address); 40],
            additional: vec![],
            outside: None,
            zone: Some("cluster.local"),
        };
        let bytes = encode(&query, &question, &answer, 4096);
        assert_eq!(addresses(&bytes).len(), 40);
        assert_eq!(bytes[2] & 2, 0);
        let short = encode(&query, &question, &answer, 512);
        assert!(short.len() <= 512 && short[2] & 2 == 2 && !addresses(&short).is_empty());
        let none =
            encode(&query, &question, &Answer { records: vec![], code: Code::NoSuchName, ..answer }, 512);
        assert_eq!((none[3] & 15, none[9]), (3, 1));
    }

    #[test]
    fn nonsense_is_no_question() {
        let query = query_for_address("a.b");
        for length in 0..query.len() {
            assert_eq!(Question::parse(&query[..length]), None);
        }
        let mut looping = query.clone();
        looping[12] = 0xc0;
        looping[13] = 12;
        assert_eq!(Question::parse(&looping), None);
        let mut answer = query;
        answer[2] = 0x84;
        assert_eq!(Question::parse(&answer), None);
    }
}
