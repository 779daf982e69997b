//! An expression's text to its tree. The grammar and its limits follow the lexer and parser of GitHub's runner
//! (`actions/runner`, `DTExpressions2`): operators by falling precedence are `!`, `< <= > >=`, `== !=`, `&&`,
//! `||`; names of functions and contexts compare without regard to case.

use super::value::parse_number;
use naru_plan::EvaluateError;

/// GitHub's own limits on an expression.
pub const LENGTH_MAX: usize = 21_000;
pub const DEPTH_MAX: usize = 50;

/// A node with the byte offset at which it begins.
#[derive(Debug, Clone, PartialEq)]
pub struct Expr {
    pub at: usize,
    pub node: Node,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Node {
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
    /// `github`, in lower case.
    Context(String),
    /// `a[b]`; `a.b` is `a['b']`.
    Index(Box<Expr>, Box<Expr>),
    /// `a.*`, `a[*]`
    Star(Box<Expr>),
    Call(Function, Vec<Expr>),
    Not(Box<Expr>),
    Compare(Comparison, Box<Expr>, Box<Expr>),
    And(Vec<Expr>),
    Or(Vec<Expr>),
}

impl Expr {
    /// What stands directly under this node.
    pub fn children(&self) -> Vec<&Expr> {
        match &self.node {
            Node::Index(a, b) | Node::Compare(_, a, b) => vec![a, b],
            Node::Star(it) | Node::Not(it) => vec![it],
            Node::Call(_, items) | Node::And(items) | Node::Or(items) => items.iter().collect(),
            _ => Vec::new(),
        }
    }

    /// The node and everything under it.
    pub fn walk(&self, visit: &mut impl FnMut(&Expr)) {
        visit(self);
        for child in self.children() {
            child.walk(visit);
        }
    }

    fn depth(&self) -> usize {
        1 + self.children().into_iter().map(Expr::depth).max().unwrap_or(0)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Function {
    Contains,
    StartsWith,
    EndsWith,
    Format,
    Join,
    ToJson,
    FromJson,
    Case,
    HashFiles,
    Success,
    Failure,
    Always,
    Cancelled,
}

/// Every function: its name, and how many arguments it takes at least and at most.
pub const FUNCTIONS: &[(&str, Function, usize, usize)] = &[
    ("contains", Function::Contains, 2, 2),
    ("startsWith", Function::StartsWith, 2, 2),
    ("endsWith", Function::EndsWith, 2, 2),
    ("format", Function::Format, 1, 255),
    ("join", Function::Join, 1, 2),
    ("toJSON", Function::ToJson, 1, 1),
    ("fromJSON", Function::FromJson, 1, 1),
    ("case", Function::Case, 3, 255),
    ("hashFiles", Function::HashFiles, 1, 255),
    ("success", Function::Success, 0, 255),
    ("failure", Function::Failure, 0, 255),
    ("always", Function::Always, 0, 0),
    ("cancelled", Function::Cancelled, 0, 0),
];

impl Function {
    pub fn name(self) -> &'static str {
        FUNCTIONS.iter().find(|it| it.1 == self).expect("the table has every function").0
    }

    /// Whether it asks how the job or run has gone so far.
    pub fn is_status(self) -> bool {
        matches!(self, Self::Success | Self::Failure | Self::Always | Self::Cancelled)
    }
}

pub fn parse(source: &str) -> Result<Expr, EvaluateError> {
    if source.len() > LENGTH_MAX {
        return fail(0, format!("the expression is longer than {LENGTH_MAX} characters"));
    }
    let tokens = tokens(source)?;
    let mut parser = Parser { source, tokens, next: 0, depth: 0 };
    let expr = parser.or()?;
    if let Some((at, token)) = parser.peek() {
        return fail(*at, format!("{} is not expected here", token.describe()));
    }
    if expr.depth() > DEPTH_MAX {
        return too_deep(0);
    }
    Ok(expr)
}

fn too_deep<T>(at: usize) -> Result<T, EvaluateError> {
    fail(at, format!("the expression is nested deeper than {DEPTH_MAX} levels"))
}

fn fail<T>(offset: usize, message: impl Into<String>) -> Result<T, EvaluateError> {
    Err(EvaluateError { message: message.into(), offset })
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Sign(&'static str),
    Number(f64),
    Text(String),
    Word(String),
}

impl Token {
    fn describe(&self) -> String {
        match self {
            Self::Sign(it) => format!("`{it}`"),
            Self::Number(it) => format!("the number {}", super::value::number_text(*it)),
            Self::Text(it) => format!("the text '{}'", it.chars().take(30).collect::<String>()),
            Self::Word(it) => format!("`{it}`"),
        }
    }
}

const SIGNS: &[&str] =
    &["&&", "||", "==", "!=", "<=", ">=", "(", ")", "[", "]", ",", ".", "!", "<", ">", "*"];

fn tokens(source: &str) -> Result<Vec<(usize, Token)>, EvaluateError> {
    let mut tokens: Vec<(usize, Token)> = Vec::new();
    let mut at = 0;
    while let Some(c) = source[at..].chars().next() {
        if c.is_whitespace() {
            at += c.len_utf8();
            continue;
        }
        // After a value a point is the way into it; anywhere else it begins a number, as in `.5`.
        let after_value = match tokens.last() {
            Some((_, Token::Sign(it))) => matches!(*it, ")" | "]" | "*"),
            Some((_, Token::Word(_) | Token::Text(_) | Token::Number(_))) => true,
            None => false,
        };
        let start = at;
        let token = if c == '\'' {
            Token::Text(quoted(source, &mut at)?)
        } else if c.is_ascii_digit() || c == '-' || c == '+' || (c == '.' && !after_value) {
            at += 1;
            at += source[at..].find(|it| is_boundary(it) && it != '.').unwrap_or(source.len() - at);
            let text = &source[start..at];
            let number = parse_number(text);
            if number.is_nan() {
                return fail(start, format!("`{text}` is not a number"));
            }
            Token::Number(number)
        } else if let Some(sign) = SIGNS.iter().find(|it| source[at..].starts_with(**it)) {
            at += sign.len();
            Token::Sign(sign)
        } else {
            at += c.len_utf8();
            at += source[at..].find(is_boundary).unwrap_or(source.len() - at);
            let word = &source[start..at];
            if !is_name(word) {
                let hint = match word.chars().next() {
                    _ if word.contains('"') => "; text stands in single quotes",
                    Some('=') => "; `==` compares",
                    Some('&') => "; `&&` is and",
                    Some('|') => "; `||` is or",
                    _ => "",
                };
                return fail(start, format!("`{word}` is not understood{hint}"));
            }
            let property = matches!(tokens.last(), Some((_, Token::Sign("."))));
            match word {
                "NaN" if !property => Token::Number(f64::NAN),
                "Infinity" if !property => Token::Number(f64::INFINITY),
                _ => Token::Word(word.to_owned()),
            }
        };
        tokens.push((start, token));
    }
    Ok(tokens)
}

/// What is between two single quotes; two in a row stand for one.
fn quoted(source: &str, at: &mut usize) -> Result<String, EvaluateError> {
    let start = *at;
    let mut text = String::new();
    let mut chars = source[start + 1..].char_indices().peekable();
    while let Some((index, c)) = chars.next() {
        if c != '\'' {
            text.push(c);
        } else if chars.next_if(|(_, it)| *it == '\'').is_some() {
            text.push('\'');
        } else {
            *at = start + 1 + index + 1;
            return Ok(text);
        }
    }
    fail(start, "a text begins here and its closing `'` is missing")
}

fn is_boundary(c: char) -> bool {
    c.is_whitespace() || "()[],.!<>=&|".contains(c)
}

pub fn is_name(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
}

struct Parser<'a> {
    source: &'a str,
    tokens: Vec<(usize, Token)>,
    next: usize,
    depth: usize,
}

impl Parser<'_> {
    fn peek(&self) -> Option<&(usize, Token)> {
        self.tokens.get(self.next)
    }

    fn sign(&mut self, sign: &str) -> bool {
        let found = matches!(self.peek(), Some((_, Token::Sign(it))) if *it == sign);
        self.next += usize::from(found);
        found
    }

    fn expect(&mut self, sign: &str) -> Result<(), EvaluateError> {
        if self.sign(sign) {
            return Ok(());
        }
        match self.peek() {
            Some((at, token)) => fail(*at, format!("{} where `{sign}` is expected", token.describe())),
            None => fail(self.source.len(), format!("the expression ends where `{sign}` is expected")),
        }
    }

    fn or(&mut self) -> Result<Expr, EvaluateError> {
        // Recursion must stay within the stack however many parentheses somebody opens.
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            let at = self.peek().map_or(0, |it| it.0);
            return too_deep(at);
        }
        let first = self.and()?;
        let at = first.at;
        let mut items = vec![first];
        while self.sign("||") {
            items.push(self.and()?);
        }
        self.depth -= 1;
        Ok(single(items, at, Node::Or))
    }

    fn and(&mut self) -> Result<Expr, EvaluateError> {
        let first = self.equality()?;
        let at = first.at;
        let mut items = vec![first];
        while self.sign("&&") {
            items.push(self.equality()?);
        }
        Ok(single(items, at, Node::And))
    }

    fn equality(&mut self) -> Result<Expr, EvaluateError> {
        let mut left = self.order()?;
        let mut steps = 0;
        while let Some(by) = self.comparison(&[("==", Comparison::Equal), ("!=", Comparison::NotEqual)]) {
            let right = self.order()?;
            left = compare(by, left, right);
            // Every step nests what was read before.
            steps += 1;
            if steps > DEPTH_MAX {
                return too_deep(left.at);
            }
        }
        Ok(left)
    }

    fn order(&mut self) -> Result<Expr, EvaluateError> {
        const SIGNS: &[(&str, Comparison)] = &[
            ("<=", Comparison::LessOrEqual),
            (">=", Comparison::GreaterOrEqual),
            ("<", Comparison::Less),
            (">", Comparison::Greater),
        ];
        let mut left = self.not()?;
        let mut steps = 0;
        while let Some(by) = self.comparison(SIGNS) {
            let right = self.not()?;
            left = compare(by, left, right);
            steps += 1;
            if steps > DEPTH_MAX {
                return too_deep(left.at);
            }
        }
        Ok(left)
    }

    fn comparison(&mut self, signs: &[(&str, Comparison)]) -> Option<Comparison> {
        signs.iter().find(|(sign, _)| self.sign(sign)).map(|(_, it)| *it)
    }

    fn not(&mut self) -> Result<Expr, EvaluateError> {
        let mut at = Vec::new();
        while let Some(place) = self.peek().map(|it| it.0)
            && self.sign("!")
        {
            at.push(place);
        }
        if at.len() > DEPTH_MAX {
            return too_deep(at[0]);
        }
        let mut expr = self.path()?;
        for at in at.into_iter().rev() {
            expr = Expr { at, node: Node::Not(Box::new(expr)) };
        }
        Ok(expr)
    }

    /// A value and the way into it: `github.event.commits[0].*.id`.
    fn path(&mut self) -> Result<Expr, EvaluateError> {
        let (mut expr, enters) = self.operand()?;
        if !enters {
            return Ok(expr);
        }
        let mut steps = 0;
        loop {
            let at = expr.at;
            steps += 1;
            if steps > DEPTH_MAX + 1 {
                return too_deep(at);
            }
            let key_at = self.tokens.get(self.next + 1).map_or(self.source.len(), |it| it.0);
            if self.sign(".") {
                if self.sign("*") {
                    expr = Expr { at, node: Node::Star(Box::new(expr)) };
                } else if let Some((_, Token::Word(name))) = self.peek() {
                    let key = Expr { at: key_at, node: Node::Text(name.clone()) };
                    self.next += 1;
                    expr = Expr { at, node: Node::Index(Box::new(expr), Box::new(key)) };
                } else {
                    return fail(key_at, "a name or `*` is expected after `.`");
                }
            } else if self.sign("[") {
                if self.sign("*") {
                    expr = Expr { at, node: Node::Star(Box::new(expr)) };
                } else {
                    let key = self.or()?;
                    expr = Expr { at, node: Node::Index(Box::new(expr), Box::new(key)) };
                }
                self.expect("]")?;
            } else {
                break;
            }
        }
        Ok(expr)
    }

    /// A single value, and whether `.` and `[` may follow it.
    fn operand(&mut self) -> Result<(Expr, bool), EvaluateError> {
        let Some((at, token)) = self.peek().cloned() else {
            let message = if self.tokens.is_empty() {
                "the expression is empty"
            } else {
                "the expression ends too early"
            };
            return fail(self.source.len(), message);
        };
        self.next += 1;
        let literal = |node| Ok((Expr { at, node }, false));
        match token {
            Token::Number(it) => literal(Node::Number(it)),
            Token::Text(it) => literal(Node::Text(it)),
            Token::Sign("(") => {
                let inner = self.or()?;
                self.expect(")")?;
                Ok((inner, true))
            }
            Token::Sign(it) => fail(at, format!("`{it}` is not expected here")),
            Token::Word(word) => match word.as_str() {
                "true" => literal(Node::Bool(true)),
                "false" => literal(Node::Bool(false)),
                "null" => literal(Node::Null),
                _ if self.sign("(") => Ok((self.call(at, &word)?, true)),
                _ => Ok((Expr { at, node: Node::Context(word.to_ascii_lowercase()) }, true)),
            },
        }
    }

    fn call(&mut self, at: usize, name: &str) -> Result<Expr, EvaluateError> {
        let known = FUNCTIONS.iter().find(|it| it.0.eq_ignore_ascii_case(name));
        let Some((name, function, least, most)) = known else {
            let names = FUNCTIONS.iter().map(|it| it.0);
            let hint = naru_text::suggest(name, names).map(|it| format!("; did you mean `{it}`?"));
            return fail(at, format!("there is no function `{name}`{}", hint.unwrap_or_default()));
        };
        let mut args = Vec::new();
        if !self.sign(")") {
            loop {
                args.push(self.or()?);
                // A comma may be left over before the end.
                let more = self.sign(",");
                if self.sign(")") {
                    break;
                }
                if !more {
                    self.expect(")")?;
                }
            }
        }
        if args.len() < *least || args.len() > *most {
            let wants = match (least, most) {
                (a, b) if a == b => format!("{a}"),
                (a, 255) => format!("at least {a}"),
                (a, b) => format!("{a} to {b}"),
            };
            return fail(at, format!("`{name}` takes {wants} arguments, {} are given", args.len()));
        }
        if *function == Function::Case && args.len() % 2 == 0 {
            return fail(at, "`case` takes pairs of a condition and a value, and then one value more");
        }
        Ok(Expr { at, node: Node::Call(*function, args) })
    }
}

fn compare(by: Comparison, left: Expr, right: Expr) -> Expr {
    Expr { at: left.at, node: Node::Compare(by, Box::new(left), Box::new(right)) }
}

fn single(mut items: Vec<Expr>, at: usize, many: fn(Vec<Expr>) -> Node) -> Expr {
    if items.len() > 1 {
        return Expr { at, node: many(items) };
    }
    items.pop().expect("one was parsed")
}
