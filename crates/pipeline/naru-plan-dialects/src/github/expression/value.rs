//! Values of expressions, and what GitHub makes of one kind where another is wanted. The rules are those of
//! JavaScript's abstract comparison, but texts compare without regard to case and collections by identity.

use serde_json::Value;
use std::borrow::Cow;
use std::cmp::Ordering;
use std::rc::Rc;

/// A value while an expression is computed. What comes out of the contexts is borrowed.
#[derive(Debug, Clone)]
pub enum Val<'a> {
    Null,
    Bool(bool),
    Number(f64),
    Text(Cow<'a, str>),
    /// A list or an object of the contexts; never a scalar.
    Json(&'a Value),
    List(Rc<List<'a>>),
    /// In the order in which it was written.
    Object(Rc<Vec<(String, Val<'a>)>>),
}

#[derive(Debug)]
pub struct List<'a> {
    pub items: Vec<Val<'a>>,
    /// The outcome of a `*`: the way goes on into each item.
    pub starred: bool,
}

/// The kinds that GitHub names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Null,
    Boolean,
    Number,
    String,
    Array,
    Object,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Null => "Null",
            Self::Boolean => "Boolean",
            Self::Number => "Number",
            Self::String => "String",
            Self::Array => "Array",
            Self::Object => "Object",
        }
    }
}

impl<'a> Val<'a> {
    pub fn of(value: &'a Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(it) => Self::Bool(*it),
            Value::Number(it) => Self::Number(it.as_f64().unwrap_or(f64::NAN)),
            Value::String(it) => Self::Text(Cow::Borrowed(it)),
            Value::Array(_) | Value::Object(_) => Self::Json(value),
        }
    }

    pub fn list(items: Vec<Self>) -> Self {
        Self::List(Rc::new(List { items, starred: false }))
    }

    pub fn object(entries: Vec<(String, Self)>) -> Self {
        Self::Object(Rc::new(entries))
    }

    /// The same value, with nothing borrowed. Collections become others, as comparisons see them.
    pub fn into_owned(self) -> Val<'static> {
        match self {
            Self::Null => Val::Null,
            Self::Bool(it) => Val::Bool(it),
            Self::Number(it) => Val::Number(it),
            Self::Text(it) => Val::Text(Cow::Owned(it.into_owned())),
            it => match it.items() {
                Some(items) => Val::list(items.into_iter().map(Val::into_owned).collect()),
                None => {
                    let entries = it.entries().unwrap_or_default();
                    Val::object(
                        entries.into_iter().map(|(key, it)| (key.to_owned(), it.into_owned())).collect(),
                    )
                }
            },
        }
    }

    pub fn starred(items: Vec<Self>) -> Self {
        Self::List(Rc::new(List { items, starred: true }))
    }

    pub fn kind(&self) -> Kind {
        match self {
            Self::Null => Kind::Null,
            Self::Bool(_) => Kind::Boolean,
            Self::Number(_) => Kind::Number,
            Self::Text(_) => Kind::String,
            Self::Json(Value::Array(_)) | Self::List(_) => Kind::Array,
            Self::Json(_) | Self::Object(_) => Kind::Object,
        }
    }

    pub fn is_collection(&self) -> bool {
        matches!(self, Self::Json(_) | Self::List(_) | Self::Object(_))
    }

    pub fn is_true(&self) -> bool {
        match self {
            Self::Null => false,
            Self::Bool(it) => *it,
            Self::Number(it) => *it != 0.0 && !it.is_nan(),
            Self::Text(it) => !it.is_empty(),
            _ => true,
        }
    }

    /// What it looks like in text. Collections show only their kind.
    pub fn text(&self) -> Cow<'_, str> {
        match self {
            Self::Null => Cow::Borrowed(""),
            Self::Bool(true) => Cow::Borrowed("true"),
            Self::Bool(false) => Cow::Borrowed("false"),
            Self::Number(it) => Cow::Owned(number_text(*it)),
            Self::Text(it) => Cow::Borrowed(it),
            it => Cow::Borrowed(it.kind().name()),
        }
    }

    /// The number that it counts as, NaN if none.
    pub fn number(&self) -> f64 {
        match self {
            Self::Null => 0.0,
            Self::Bool(it) => f64::from(u8::from(*it)),
            Self::Number(it) => *it,
            Self::Text(it) => parse_number(it),
            _ => f64::NAN,
        }
    }

    /// The items of a list.
    pub fn items(&self) -> Option<Vec<Val<'a>>> {
        match self {
            Self::Json(Value::Array(items)) => Some(items.iter().map(Val::of).collect()),
            Self::List(list) => Some(list.items.clone()),
            _ => None,
        }
    }

    /// The entries of an object.
    pub fn entries(&self) -> Option<Vec<(&str, Val<'a>)>> {
        match self {
            Self::Json(Value::Object(map)) => {
                Some(map.iter().map(|(key, it)| (key.as_str(), Val::of(it))).collect())
            }
            Self::Object(entries) => {
                Some(entries.iter().map(|(key, it)| (key.as_str(), it.clone())).collect())
            }
            _ => None,
        }
    }

    /// The property whose name is exactly this one.
    pub fn property_exact(&self, name: &str) -> Option<Val<'a>> {
        match self {
            Self::Json(Value::Object(map)) => map.get(name).map(Val::of),
            Self::Object(entries) => entries.iter().find(|(key, _)| key == name).map(|(_, it)| it.clone()),
            _ => None,
        }
    }

    /// An object's property; names compare without regard to case.
    pub fn property(&self, name: &str) -> Option<Val<'a>> {
        match self {
            Self::Json(Value::Object(map)) => map
                .get(name)
                .or_else(|| map.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, it)| it))
                .map(Val::of),
            Self::Object(entries) => {
                entries.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, it)| it.clone())
            }
            _ => None,
        }
    }

    /// As JSON; numbers that JSON cannot say are null.
    pub fn to_json(&self) -> Value {
        match self {
            Self::Null => Value::Null,
            Self::Bool(it) => Value::Bool(*it),
            Self::Number(it) => number_json(*it),
            Self::Text(it) => Value::String(it.to_string()),
            Self::Json(it) => (*it).clone(),
            Self::List(it) => Value::Array(it.items.iter().map(Val::to_json).collect()),
            Self::Object(it) => {
                Value::Object(it.iter().map(|(key, it)| (key.clone(), it.to_json())).collect())
            }
        }
    }

    fn is_same_collection(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Json(a), Self::Json(b)) => std::ptr::eq(*a, *b),
            (Self::List(a), Self::List(b)) => Rc::ptr_eq(a, b),
            (Self::Object(a), Self::Object(b)) => Rc::ptr_eq(a, b),
            _ => false,
        }
    }
}

pub fn number_json(it: f64) -> Value {
    // Beyond 2^53 a float no longer names one whole number.
    if it.fract() == 0.0 && it.abs() < 9_007_199_254_740_992.0 {
        Value::from(it as i64)
    } else {
        serde_json::Number::from_f64(it).map_or(Value::Null, Value::Number)
    }
}

pub fn equal(a: &Val<'_>, b: &Val<'_>) -> bool {
    match (a, b) {
        (Val::Text(a), Val::Text(b)) => equal_text(a, b),
        (Val::Null, Val::Null) => true,
        (Val::Bool(a), Val::Bool(b)) => a == b,
        (a, b) if a.is_collection() || b.is_collection() => a.is_same_collection(b),
        (a, b) => a.number() == b.number(),
    }
}

pub fn order(a: &Val<'_>, b: &Val<'_>) -> Option<Ordering> {
    match (a, b) {
        (Val::Text(a), Val::Text(b)) => Some(folded(a).cmp(&folded(b))),
        (Val::Bool(a), Val::Bool(b)) => Some(a.cmp(b)),
        (Val::Null, Val::Null) => None,
        (a, b) => a.number().partial_cmp(&b.number()),
    }
}

pub fn equal_text(a: &str, b: &str) -> bool {
    if a.is_ascii() && b.is_ascii() { a.eq_ignore_ascii_case(b) } else { folded(a) == folded(b) }
}

/// A text as comparisons see it: every UTF-16 unit in upper case by itself, as .NET's ordinal comparison
/// has it. What has no single upper-case letter (`ß`), and the dotless `ı`, stay.
pub fn folded(text: &str) -> Vec<u16> {
    let mut units = Vec::with_capacity(text.len());
    let mut buffer = [0; 2];
    for c in text.chars() {
        let mut upper = c.to_uppercase();
        let c = match (upper.next(), upper.next()) {
            (Some(it), None) if c != 'ı' => it,
            _ => c,
        };
        units.extend_from_slice(c.encode_utf16(&mut buffer));
    }
    units
}

/// The number in a text, NaN if it is none; nothing at all is 0. Hexadecimal and octal numbers are those of 32
/// bits with a sign, as the runner reads them.
pub fn parse_number(text: &str) -> f64 {
    let text = text.trim();
    match text {
        "" => return 0.0,
        "Infinity" | "+Infinity" => return f64::INFINITY,
        "-Infinity" => return f64::NEG_INFINITY,
        _ => {}
    }
    let based = |digits: &str, base| {
        let valid = !digits.is_empty() && digits.chars().all(|it| it.is_digit(base));
        let number = if valid { u32::from_str_radix(digits, base).ok() } else { None };
        number.map_or(f64::NAN, |it| f64::from(it.cast_signed()))
    };
    if let Some(digits) = text.strip_prefix("0x") {
        return based(digits, 16);
    }
    if let Some(digits) = text.strip_prefix("0o") {
        return based(digits, 8);
    }
    // Rust also reads `inf`, `nan` and the like.
    if text.bytes().all(|it| it.is_ascii_digit() || b"+-.eE".contains(&it)) {
        return text.parse().unwrap_or(f64::NAN);
    }
    f64::NAN
}

/// Fifteen digits at most, as .NET's format `G15` shows numbers: `0.1`, `1E+15`, `1.5E-07`.
pub fn number_text(number: f64) -> String {
    const DIGITS: i32 = 15;
    if number == 0.0 {
        return "0".into();
    }
    if number.fract() == 0.0 && number.abs() < 1e15 {
        return (number as i64).to_string();
    }
    if number.is_nan() {
        return "NaN".into();
    }
    if number.is_infinite() {
        return if number > 0.0 { "Infinity".into() } else { "-Infinity".into() };
    }
    let scientific = format!("{number:.14e}");
    let (mantissa, exponent) = scientific.split_once('e').expect("the format writes an `e`");
    let exponent: i32 = exponent.parse().expect("the format writes a whole exponent");
    let (sign, mantissa) = mantissa.strip_prefix('-').map_or(("", mantissa), |it| ("-", it));
    let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    let digits = digits.trim_end_matches('0');
    if exponent >= DIGITS || exponent <= -5 {
        let (first, rest) = digits.split_at(1);
        let point = if rest.is_empty() { "" } else { "." };
        let minus = if exponent < 0 { '-' } else { '+' };
        return format!("{sign}{first}{point}{rest}E{minus}{:02}", exponent.abs());
    }
    if exponent < 0 {
        return format!("{sign}0.{}{digits}", "0".repeat((-exponent - 1) as usize));
    }
    let whole = exponent as usize + 1;
    if digits.len() <= whole {
        return format!("{sign}{digits}{}", "0".repeat(whole - digits.len()));
    }
    format!("{sign}{}.{}", &digits[..whole], &digits[whole..])
}
