use proptest::prelude::*;

use super::*;

fn canonical(text: &str) -> String {
    Selector::parse(text).unwrap_or_else(|e| panic!("{text}: {e}")).to_string()
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn chooses(text: &str, pairs: &[(&str, &str)]) -> bool {
    Selector::parse(text).unwrap_or_else(|e| panic!("{text}: {e}")).matches(&labels(pairs))
}

#[test]
fn canonical_forms() {
    for (text, wanted) in [
        ("", "all()"),
        (" \t ", "all()"),
        ("all()", "all()"),
        ("all( )", "all()"),
        ("((all()))", "all()"),
        ("global(\t)", "global()"),
        ("has( x )", "has(x)"),
        ("has(a/b.c_d-e)", "has(a/b.c_d-e)"),
        ("a=='b'", "a == \"b\""),
        ("a\t==\t\"b\"", "a == \"b\""),
        ("a == 'say \"hi\"'", "a == 'say \"hi\"'"),
        ("a == \"it's\"", "a == \"it's\""),
        ("a != ''", "a != \"\""),
        ("a contains'x'", "a contains \"x\""),
        ("a startswith 'x'", "a starts with \"x\""),
        ("a starts \t with'x'", "a starts with \"x\""),
        ("a endswith 'x'", "a ends with \"x\""),
        ("a in{'z','a','z',}", "a in {\"a\", \"z\"}"),
        ("a in {}", "a in {}"),
        ("a in { }", "a in {}"),
        ("a notin {'x'}", "a not in {\"x\"}"),
        ("a not \t in {\"it's\",'\"'}", "a not in {'\"', \"it's\"}"),
        ("in in {'x'}", "in in {\"x\"}"),
        ("not not in {'x'}", "not not in {\"x\"}"),
        ("contains contains 'x'", "contains contains \"x\""),
        ("has == 'x'", "has == \"x\""),
        ("all == 'x'", "all == \"x\""),
        ("!a == 'b'", "!a == \"b\""),
        ("!!has(a)", "has(a)"),
        ("! ! !has(a)", "!has(a)"),
        ("!(a == 'b') && !( all( ) )", "(!a == \"b\" && !all())"),
        ("!(!has(a) && has(b))", "!(!has(a) && has(b))"),
        ("(((has(a))))", "has(a)"),
        ("(has(a) && (has(b)))", "(has(a) && has(b))"),
        ("((has(a) || has(b)) || has(c))", "((has(a) || has(b)) || has(c))"),
        ("a not in { }", "a not in {}"),
        ("a notin{'x' , \"x\",'x'}", "a not in {\"x\"}"),
        ("a==''&&b!=\"\"", "(a == \"\" && b != \"\")"),
        ("a contains \"a && b || !c (d) {e}\"", "a contains \"a && b || !c (d) {e}\""),
        ("global == 'x' && in == 'y'", "(global == \"x\" && in == \"y\")"),
        ("starts starts with 'x'", "starts starts with \"x\""),
        ("notin notin {'x'}", "notin not in {\"x\"}"),
        ("-/._ == 'x'", "-/._ == \"x\""),
        ("0 in {'\t ', 'B', 'a', ''}", "0 in {\"\", \"\t \", \"B\", \"a\"}"),
        ("has(all) && has(has)", "(has(all) && has(has))"),
        ("(a == 'b')", "a == \"b\""),
        ("!(a == 'b')", "!a == \"b\""),
        ("a == 'b' && has(c)", "(a == \"b\" && has(c))"),
        ("(a == 'b' && has(c))", "(a == \"b\" && has(c))"),
        ("has(a) || has(b) && has(c)", "(has(a) || (has(b) && has(c)))"),
        ("(has(a) || has(b)) && has(c)", "((has(a) || has(b)) && has(c))"),
        ("(has(a) && has(b)) && has(c)", "((has(a) && has(b)) && has(c))"),
        ("has(a) && has(b) && has(c)", "(has(a) && has(b) && has(c))"),
        ("has(a) || (has(b) || has(c))", "(has(a) || (has(b) || has(c)))"),
        ("!(has(a) && has(b))", "!(has(a) && has(b))"),
        ("has(a)&&!has(b)||!(has(c))", "((has(a) && !has(b)) || !has(c))"),
        ("a == 'line\nbreak'", "a == \"line\nbreak\""),
        ("a == 'é'", "a == \"é\""),
    ] {
        assert_eq!(canonical(text), wanted, "{text:?}");
        assert_eq!(canonical(wanted), wanted, "{wanted:?}");
    }
}

#[test]
fn only_signs_that_stand_together_cancel() {
    for (text, wanted) in
        [("!(!has(a))", "!!has(a)"), ("!!(!(has(a)))", "!has(a)"), ("!(!(!has(a)))", "!!!has(a)")]
    {
        assert_eq!(canonical(text), wanted, "{text:?}");
        let (selector, again) = (Selector::parse(text).unwrap(), Selector::parse(wanted).unwrap());
        for set in [labels(&[]), labels(&[("a", "")])] {
            assert_eq!(selector.matches(&set), again.matches(&set), "{text:?}");
        }
    }
}

#[test]
fn refused_with_the_offset() {
    for (text, offset) in [
        ("a", 1),
        ("a ==", 4),
        ("a == b", 5),
        ("a == 'b", 5),
        ("a = 'b'", 2),
        ("a ! = 'b'", 2),
        ("a & has(b)", 2),
        ("has(a) & has(b)", 7),
        ("has(a) | has(b)", 7),
        ("has(a) has(b)", 7),
        ("has(a) &&", 9),
        ("&& has(a)", 0),
        ("has (a)", 4),
        ("all ()", 4),
        ("has()", 4),
        ("has('a')", 4),
        ("has(a", 5),
        ("all(a)", 4),
        ("foo(a)", 0),
        ("xhas(a)", 0),
        ("(has(a)", 7),
        ("has(a))", 6),
        ("()", 1),
        ("!", 1),
        ("a in 'x'", 5),
        ("a in {,}", 6),
        ("a in {'x' 'y'}", 10),
        ("a in {'x'", 9),
        ("a in {x}", 6),
        ("a inx {'x'}", 4),
        ("a starts 'x'", 2),
        ("a IN {'x'}", 2),
        ("a == 'b'\n", 8),
        ("a == 'b' &&\nhas(c)", 11),
        ("a =='b'\u{a0}", 7),
        ("'a' == 'b'", 0),
        ("a$b == 'c'", 1),
        ("é == 'c'", 0),
        ("a == 'it's'", 9),
    ] {
        let error = Selector::parse(text).expect_err(text);
        assert_eq!(error.offset, offset, "{text:?}: {error}");
        assert!(text.is_char_boundary(error.offset));
    }
}

#[test]
fn keys_have_a_limit() {
    let fits = "k".repeat(512);
    assert!(chooses(&format!("{fits} == 'x' && has({fits})"), &[(&fits, "x")]));
    let too_long = "k".repeat(513);
    assert_eq!(Selector::parse(&format!("{too_long} == 'x'")).unwrap_err().offset, 0);
    assert_eq!(Selector::parse(&format!("has({too_long})")).unwrap_err().offset, 4);
}

#[test]
fn missing_labels() {
    for text in ["a == ''", "a in {''}", "a contains ''", "a starts with ''", "a ends with ''"] {
        assert!(!chooses(text, &[]), "{text}");
        assert!(chooses(text, &[("a", "")]), "{text}");
    }
    for text in ["a != 'x'", "a not in {'x'}", "a not in {}", "!has(a)", "!a == 'x'"] {
        assert!(chooses(text, &[]), "{text}");
    }
    assert!(!chooses("a in {}", &[("a", "")]));
    assert!(chooses("a not in {}", &[("a", "")]));
    assert!(chooses("global()", &[]));
}

#[test]
fn precedence() {
    let text = "has(a) || has(b) && has(c)";
    assert!(chooses(text, &[("a", "")]));
    assert!(!chooses(text, &[("b", "")]));
    assert!(chooses(text, &[("b", ""), ("c", "")]));
    assert!(chooses("!a == 'b' && has(a)", &[("a", "c")]));
    assert!(!chooses("!(a == 'b' || has(c))", &[("c", "")]));
}

#[test]
fn nesting_is_bounded() {
    let nested =
        |depth: usize| format!("{}has(a){}", "!(has(b)||".repeat(depth), ")".repeat(depth));
    let deepest = Selector::parse(&nested(MAX_DEPTH)).unwrap();
    assert_eq!(Selector::parse(deepest.as_str()).unwrap(), deepest);
    assert!(deepest.matches(&labels(&[("a", "")])));
    let error = Selector::parse(&nested(MAX_DEPTH + 1)).unwrap_err();
    assert!(error.message.contains("nested"), "{error}");
    let bomb = Selector::parse(&"(".repeat(60_000)).unwrap_err();
    assert_eq!(bomb.offset, MAX_DEPTH + 1);
    assert!(Selector::parse(&"!".repeat(60_000)).is_err());
    assert_eq!(Selector::parse(&"(!".repeat(10_000_000)).unwrap_err().offset, MAX_BYTES);
}

#[test]
fn combinators() {
    let app = Selector::parse("app == 'x' || !has(app)").unwrap();
    assert_eq!(app.prefixed("pcns.").to_string(), "(pcns.app == \"x\" || !has(pcns.app))");
    assert_eq!(app.and(&Selector::all()), app);
    assert_eq!(Selector::all().and(&app), app);
    assert_eq!(app.and(&Selector::has("b")).to_string(), format!("({app} && has(b))"));
    assert_eq!(app.negated().to_string(), format!("!{app}"));
    assert_eq!(app.negated().negated(), app);
    let ns = Selector::has("ns");
    let spaces = Selector::parse("all() && !global()").unwrap();
    assert_eq!(spaces.replacing(&ns, &ns.negated()).to_string(), "(has(ns) && has(ns))");
    assert_eq!(Selector::one_of("k", ["b", "a", "b"]).to_string(), "k in {\"a\", \"b\"}");
    assert_eq!(Selector::none_of("k", ["b"]).to_string(), "k not in {\"b\"}");
    assert_eq!(Selector::equals("k", "v").to_string(), "k == \"v\"");
    assert!(Selector::parse("( global( ) )").unwrap().is_global());
    assert!(spaces.mentions_global() && !spaces.is_global());
    assert!(Selector::parse("").unwrap().is_all());
    let parts = |text: &str| {
        let parts = Selector::parse(text).unwrap().conjuncts();
        parts.iter().map(ToString::to_string).collect::<Vec<_>>().join(" + ")
    };
    assert_eq!(parts("has(a) && (has(b) && !has(c))"), "has(a) + has(b) + !has(c)");
    assert_eq!(parts("!(has(a) && has(b)) || has(c)"), "(!(has(a) && has(b)) || has(c))");
    let keys: Vec<_> =
        Selector::parse("b == '1' && (a != '2' || !has(b))").unwrap().keys().to_vec();
    assert_eq!(keys, ["a".into(), "b".into()]);
}

#[test]
fn requirements() {
    let text = "projectcalico.org/orchestrator == 'k8s' && \
                projectcalico.org/namespace == 'n' && app == 'x' && has(b)";
    let selector = Selector::parse(text).unwrap();
    assert_eq!(selector.requirement(), Some(Requirement::OneOf("app", &["x".into()])));
    let requirement = |text: &str| match Selector::parse(text).unwrap().requirement() {
        Some(Requirement::OneOf(key, values)) => format!("{key} {}", values.join(",")),
        Some(Requirement::Present(key)) => key.to_owned(),
        None => String::new(),
    };
    assert_eq!(requirement("a in {'x','y'} && b == 'z'"), "b z");
    assert_eq!(requirement("a starts with 'x'"), "a");
    assert_eq!(requirement("a in {}"), "a ");
    assert_eq!(requirement("a == 'x' || b == 'y'"), "");
    assert_eq!(requirement("!a == 'x'"), "");
    assert_eq!(requirement("a != 'x'"), "");
}

/// A second reading of the language: a tree that prints itself with random
/// blanks and quotes, and is evaluated as it stands.
#[derive(Debug, Clone)]
enum Naive {
    All,
    Has(String),
    Compare(String, usize, String),
    Set(String, bool, Vec<String>),
    Not(Box<Naive>),
    Group(bool, Vec<Naive>),
}

const OPERATORS: [&str; 7] =
    ["==", "!=", "contains", "starts with", "ends with", "startswith", "ends\t with"];

impl Naive {
    fn text(&self, out: &mut String) {
        let quoted = |v: &str| if v.contains('\'') { format!("\"{v}\"") } else { format!("'{v}'") };
        match self {
            Self::All => out.push_str("all( )"),
            Self::Has(key) => out.push_str(&format!("has({key} )")),
            Self::Compare(key, op, value) => {
                out.push_str(&format!("{key}\t{}{}", OPERATORS[*op], quoted(value)));
            }
            Self::Set(key, within, values) => {
                let values: Vec<_> = values.iter().map(|v| quoted(v)).collect();
                let op = if *within { "in" } else { "not  in" };
                out.push_str(&format!("{key} {op}{{{}}}", values.join(" ,")));
            }
            Self::Not(inner) => {
                out.push_str("! (");
                inner.text(out);
                out.push(')');
            }
            Self::Group(all, members) => {
                for (place, member) in members.iter().enumerate() {
                    if place > 0 {
                        out.push_str(if *all { "&& " } else { " ||" });
                    }
                    out.push('(');
                    member.text(out);
                    out.push(')');
                }
            }
        }
    }

    fn holds(&self, labels: &Labels) -> bool {
        match self {
            Self::All => true,
            Self::Has(key) => labels.contains_key(key),
            Self::Compare(key, op, value) => match (labels.get(key), OPERATORS[*op]) {
                (found, "==") => found.is_some_and(|v| v == value),
                (found, "!=") => found.is_none_or(|v| v != value),
                (None, _) => false,
                (Some(v), "contains") => v.contains(value.as_str()),
                (Some(v), op) if op.starts_with('s') => v.starts_with(value.as_str()),
                (Some(v), _) => v.ends_with(value.as_str()),
            },
            Self::Set(key, within, values) => {
                labels.get(key).is_some_and(|v| values.contains(v)) == *within
            }
            Self::Not(inner) => !inner.holds(labels),
            Self::Group(true, members) => members.iter().all(|m| m.holds(labels)),
            Self::Group(false, members) => members.iter().any(|m| m.holds(labels)),
        }
    }
}

fn key() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "b", "in", "has", "x.y/z-w", "all"]).prop_map(str::to_owned)
}

fn value() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["", "a", "ab", "b", "it's", "x\ny", "é"]).prop_map(str::to_owned)
}

fn naive() -> impl Strategy<Value = Naive> {
    let leaf = prop_oneof![
        Just(Naive::All),
        key().prop_map(Naive::Has),
        (key(), 0..OPERATORS.len(), value()).prop_map(|(k, o, v)| Naive::Compare(k, o, v)),
        (key(), any::<bool>(), prop::collection::vec(value(), 0..4))
            .prop_map(|(k, w, v)| Naive::Set(k, w, v)),
    ];
    leaf.prop_recursive(6, 48, 4, |inner| {
        prop_oneof![
            inner.clone().prop_map(|n| Naive::Not(Box::new(n))),
            (any::<bool>(), prop::collection::vec(inner, 1..4))
                .prop_map(|(all, members)| Naive::Group(all, members)),
        ]
    })
}

fn some_labels() -> impl Strategy<Value = Labels> {
    prop::collection::btree_map(key(), value(), 0..5)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn agrees_with_the_naive_reading(tree in naive(), sets in prop::collection::vec(some_labels(), 1..6)) {
        let mut text = String::new();
        tree.text(&mut text);
        let selector = Selector::parse(&text).map_err(|e| TestCaseError::fail(format!("{text}: {e}")))?;
        let again = Selector::parse(selector.as_str()).unwrap();
        let cancels = selector.as_str().contains("!!");
        prop_assert!(cancels || again == selector);
        prop_assert_eq!(&Selector::parse(again.as_str()).unwrap(), &again);
        for labels in &sets {
            prop_assert_eq!(selector.matches(labels), tree.holds(labels), "{} over {:?}", text, labels);
            prop_assert_eq!(again.matches(labels), tree.holds(labels));
            let met = match selector.requirement() {
                None => true,
                Some(Requirement::Present(key)) => labels.contains_key(key),
                Some(Requirement::OneOf(key, values)) => {
                    labels.get(key).is_some_and(|v| values.iter().any(|w| **w == **v))
                }
            };
            prop_assert!(met || !selector.matches(labels));
            let seen: Labels = labels
                .iter()
                .filter(|(k, _)| selector.keys().iter().any(|seen| **seen == ***k))
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect();
            prop_assert_eq!(selector.matches(&seen), selector.matches(labels));
        }
    }

    #[test]
    fn nothing_panics(text in "[-a-c!&|(){}'\"=, \t\n_é]{0,40}|(has\\(|all\\(|!|\\(|\\)|&&|\\|\\||a|'b'|==| in |not|\\{|\\}|,){0,30}|\\PC{0,60}") {
        match Selector::parse(&text) {
            Ok(selector) => {
                let again = Selector::parse(selector.as_str()).unwrap();
                prop_assert!(selector.as_str().contains("!!") || again == selector);
            }
            Err(error) => prop_assert!(text.is_char_boundary(error.offset), "{}", error),
        }
    }
}
