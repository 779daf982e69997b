//! `metadata.managedFields`: who owns which fields of an object, read and written.

use serde_json::{Value, json};

use crate::fields::Fields;

/// More owners by update than this are too many for an object: the oldest become one.
const UPDATERS_MAX: usize = 10;
/// The name of that one.
const ANCIENT: &str = "ancient-changes";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Operation {
    Apply,
    Update,
}

impl Operation {
    fn word(self) -> &'static str {
        match self {
            Operation::Apply => "Apply",
            Operation::Update => "Update",
        }
    }
}

/// Who writes.
#[derive(Debug, Clone, Copy)]
pub struct Owner<'a> {
    pub manager: &'a str,
    pub api_version: &'a str,
    /// Empty, `status` or `scale`.
    pub subresource: &'a str,
    /// Wire format; used only when something changes.
    pub now: &'a str,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub manager: String,
    pub operation: Operation,
    pub api_version: String,
    pub subresource: String,
    pub time: Value,
    pub fields: Fields,
}

impl Entry {
    pub fn new(owner: &Owner<'_>, operation: Operation, fields: Fields) -> Entry {
        Entry {
            manager: owner.manager.to_string(),
            operation,
            api_version: owner.api_version.to_string(),
            subresource: owner.subresource.to_string(),
            time: json!(owner.now),
            fields,
        }
    }

    /// One who applies is the same in every version; one who updates is another in each.
    pub fn is(&self, owner: &Owner<'_>, operation: Operation) -> bool {
        self.manager == owner.manager
            && self.operation == operation
            && self.subresource == owner.subresource
            && (operation == Operation::Apply || self.api_version == owner.api_version)
    }
}

/// `None` when an entry is malformed.
fn parse(managed: &Value) -> Option<Vec<Entry>> {
    let owned = |value: &Value| value.as_str().unwrap_or("").to_string();
    let mut entries: Vec<Entry> = Vec::new();
    for it in managed.as_array()? {
        let entry = Entry {
            manager: owned(&it["manager"]),
            operation: match it["operation"].as_str()? {
                "Apply" => Operation::Apply,
                "Update" => Operation::Update,
                _ => return None,
            },
            api_version: owned(&it["apiVersion"]),
            subresource: owned(&it["subresource"]),
            time: it["time"].clone(),
            fields: match &it["fieldsV1"] {
                Value::Null => Fields::default(),
                fields => Fields::parse(fields)?,
            },
        };
        if !entry.fields.is_empty() {
            entries.push(entry);
        }
    }
    Some(entries)
}

/// The owners recorded in an object.
pub(crate) fn read(object: &Value) -> Vec<Entry> {
    parse(&object["metadata"]["managedFields"]).unwrap_or_default()
}

/// The owners that a write starts from: those of the live object, unless the client edits the
/// record itself, as migrations do. An empty record, or one with one empty entry, clears it.
pub(crate) fn read_asked(live: &Value, asked: &Value) -> Vec<Entry> {
    let given = &asked["metadata"]["managedFields"];
    match given.as_array().map(Vec::as_slice) {
        None => read(live),
        Some([]) => Vec::new(),
        Some([one]) if one.as_object().is_some_and(|it| it.values().all(Value::is_null)) => Vec::new(),
        Some(_) => parse(given).filter(|it| !it.is_empty()).unwrap_or_else(|| read(live)),
    }
}

/// Writes the record in the order in which Kubernetes shows it.
pub(crate) fn write(object: &mut Value, mut entries: Vec<Entry>) {
    entries.retain(|it| !it.fields.is_empty());
    let order = |it: &Entry| {
        (
            it.operation,
            it.time.as_str().unwrap_or("").to_string(),
            it.manager.clone(),
            it.api_version.clone(),
            it.subresource.clone(),
        )
    };
    entries.sort_by_cached_key(order);
    let Some(fields) = object.as_object_mut() else { return };
    let Some(metadata) = fields.entry("metadata").or_insert_with(|| json!({})).as_object_mut() else {
        return;
    };
    if entries.is_empty() {
        metadata.remove("managedFields");
        return;
    }
    let entries: Vec<Value> = entries
        .into_iter()
        .map(|it| {
            let mut entry = json!({
                "manager": it.manager, "operation": it.operation.word(), "apiVersion": it.api_version,
                "time": it.time, "fieldsType": "FieldsV1", "fieldsV1": it.fields.to_value(),
            });
            if !it.subresource.is_empty() {
                entry["subresource"] = json!(it.subresource);
            }
            entry
        })
        .collect();
    metadata.insert("managedFields".into(), Value::Array(entries));
}

/// Makes one owner of the oldest updaters of a version, until there are few enough.
pub(crate) fn cap(entries: &mut Vec<Entry>) {
    let mut updaters: Vec<usize> =
        (0..entries.len()).filter(|at| entries[*at].operation == Operation::Update).collect();
    let mut count = updaters.len();
    if count <= UPDATERS_MAX {
        return;
    }
    updaters.sort_by_key(|at| {
        (entries[*at].time.as_str().unwrap_or("").to_string(), entries[*at].manager.clone())
    });
    // Version, its first (or collecting) entry.
    let mut first: Vec<(String, usize)> = Vec::new();
    let mut gone: Vec<usize> = Vec::new();
    for at in updaters {
        if count <= UPDATERS_MAX {
            break;
        }
        let version = entries[at].api_version.clone();
        let Some((_, bucket)) = first.iter().find(|(it, _)| *it == version) else {
            first.push((version, at));
            continue;
        };
        let bucket = *bucket;
        let fields = std::mem::take(&mut entries[at].fields);
        let time = entries[at].time.clone();
        let into = &mut entries[bucket];
        into.manager = ANCIENT.into();
        into.subresource = String::new();
        into.fields.union(fields);
        into.time = time;
        gone.push(at);
        count -= 1;
    }
    let mut at = 0;
    entries.retain(|_| {
        at += 1;
        !gone.contains(&(at - 1))
    });
}
