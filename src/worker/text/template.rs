//! The chat template of a model: messages to the text that the model continues.

use std::io::{self, Write};

use minijinja::{Environment, ErrorKind, Value, context, value::Kwargs};
use serde::Serialize as _;
use serde_json::{
    Map, Serializer, Value as Json,
    ser::{Formatter, PrettyFormatter},
};
use thiserror::Error;

use super::vocabulary::Vocabulary;
use crate::{spec::date::civil, worker::clock::unix_seconds};

/// A compiled chat template.
#[derive(Debug)]
pub(crate) struct Template {
    environment: Environment<'static>,
    source: String,
    begin: String,
    end: String,
}

/// Says why messages cannot be turned into a prompt.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub(crate) enum TemplateFault {
    /// The template itself refused, by `raise_exception`.
    #[error("the model's chat template refused: {0}")]
    Refused(String),
    /// The template does not go with the messages.
    #[error("the model's chat template failed: {0}")]
    Failed(String),
}

const NAME: &str = "chat";
/// Used for models that bring no template.
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + \
                      message['content'] + '<|im_end|>' + '\n' }}{% endfor %}\
                      {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
const REFUSED: &str = "refused by the template: ";

impl Template {
    /// Compiles `source`, or the `ChatML` template if there is none.
    ///
    /// # Errors
    /// The sentence in which the template engine says what is wrong with it.
    pub(crate) fn new(source: Option<&str>, vocabulary: &Vocabulary) -> Result<Self, String> {
        let source = source.unwrap_or(CHATML).to_owned();
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function(
            "raise_exception",
            |text: String| -> Result<(), minijinja::Error> {
                Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("{REFUSED}{text}")))
            },
        );
        environment.add_filter("tojson", |value: Value, options: Kwargs| json(&value, &options));
        environment.add_function("strftime_now", |format: String| date(&format, unix_seconds()));
        environment.add_template_owned(NAME, source.clone()).map_err(|error| error.to_string())?;
        let (begin, end) = (vocabulary.begin_text.clone(), vocabulary.end_text.clone());
        Ok(Self { environment, source, begin, end })
    }

    /// Gives the template as its author wrote it.
    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    /// Renders `messages`; `extra` holds further variables such as `tools`.
    pub(crate) fn render(
        &self,
        messages: &[Json],
        extra: &Map<String, Json>,
    ) -> Result<String, TemplateFault> {
        let failed = |error: minijinja::Error| {
            let text = error.detail().map_or_else(|| error.to_string(), str::to_owned);
            match text.split_once(REFUSED) {
                Some((_, reason)) => TemplateFault::Refused(reason.to_owned()),
                None => TemplateFault::Failed(text),
            }
        };
        let known = context! {
            messages => Value::from_serialize(messages),
            bos_token => self.begin,
            eos_token => self.end,
            add_generation_prompt => true,
        };
        let variables = context! { ..known, ..Value::from_serialize(extra) };
        let template = self.environment.get_template(NAME).map_err(failed)?;
        template.render(variables).map_err(failed)
    }
}

/// Writes JSON as Python does, which is what models were trained on: a space after each comma and
/// colon, nothing escaped for HTML.
fn json(value: &Value, options: &Kwargs) -> Result<String, minijinja::Error> {
    let fault = |error: serde_json::Error| {
        minijinja::Error::new(ErrorKind::BadSerialization, error.to_string())
    };
    let indent: Option<usize> = options.get("indent")?;
    let mut bytes = Vec::new();
    if let Some(indent) = indent {
        let indent = " ".repeat(indent);
        let formatter = PrettyFormatter::with_indent(indent.as_bytes());
        value.serialize(&mut Serializer::with_formatter(&mut bytes, formatter)).map_err(fault)?;
    } else {
        value.serialize(&mut Serializer::with_formatter(&mut bytes, Python)).map_err(fault)?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The separators of Python's `json.dumps`.
struct Python;

impl Formatter for Python {
    fn begin_array_value<W: Write + ?Sized>(&mut self, to: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { to.write_all(b", ") }
    }

    fn begin_object_key<W: Write + ?Sized>(&mut self, to: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { to.write_all(b", ") }
    }

    fn begin_object_value<W: Write + ?Sized>(&mut self, to: &mut W) -> io::Result<()> {
        to.write_all(b": ")
    }
}

/// Formats a date with the conversions that templates use.
fn date(format: &str, unix_seconds: u64) -> String {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    let (year, month, day) = civil(unix_seconds / 86_400);
    let second = unix_seconds % 86_400;
    let name = usize::try_from(month).ok().and_then(|month| MONTHS.get(month.checked_sub(1)?));
    let name = name.copied().unwrap_or_default();
    let mut text = String::new();
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            text.push(letter);
            continue;
        }
        match letters.next() {
            Some('Y') => text.push_str(&year.to_string()),
            Some('m') => text.push_str(&two_digits(month)),
            Some('d') => text.push_str(&two_digits(day)),
            Some('B') => text.push_str(name),
            Some('b') => text.extend(name.chars().take(3)),
            Some('H') => text.push_str(&two_digits(second / 3600)),
            Some('M') => text.push_str(&two_digits(second / 60 % 60)),
            Some('S') => text.push_str(&two_digits(second % 60)),
            Some(other) => text.extend(['%', other]),
            None => text.push('%'),
        }
    }
    text
}

fn two_digits(number: u64) -> String {
    format!("{number:02}")
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::GgmlDType;
    use serde_json::json;

    use super::*;
    use crate::worker::model::{Header, tiny};

    fn template(source: Option<&str>) -> Template {
        let folder = tempfile::tempdir().unwrap();
        let path = tiny::write(folder.path(), GgmlDType::F32);
        let vocabulary = Vocabulary::read(&Header::open(&path).unwrap()).unwrap();
        Template::new(source, &vocabulary).unwrap()
    }

    fn render(source: Option<&str>, messages: &Json) -> Result<String, TemplateFault> {
        template(source).render(messages.as_array().unwrap(), &Map::new())
    }

    #[test]
    fn a_model_without_a_template_speaks_chatml() {
        let text = render(None, &json!([{"role": "user", "content": "hi"}]));
        assert_eq!(text.unwrap(), "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
    }

    #[test]
    fn python_methods_and_tojson_work() {
        let source =
            "{{ messages[0]['content'].strip().upper() }}{{ messages[0] | tojson }}{{ eos_token }}";
        let text = render(Some(source), &json!([{"role": "user", "content": " hi "}])).unwrap();
        assert_eq!(text, "HI{\"role\": \"user\", \"content\": \" hi \"}<|end|>");
    }

    #[test]
    fn a_refusal_of_the_template_is_told_in_its_words() {
        let fault = render(Some("{{ raise_exception('roles must alternate') }}"), &json!([]));
        assert_eq!(fault, Err(TemplateFault::Refused("roles must alternate".to_owned())));
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date("%d %b %Y %H:%M:%S", 951_826_154), "29 Feb 2000 12:09:14");
        assert_eq!(date("%Y-%m-%d %B", 0), "1970-01-01 January");
    }
}
