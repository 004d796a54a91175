// Renders a Go template as Ollama does: its functions, its variables, its merging of messages.
// Standard input: {"template": ..., "cases": [{"Messages": [...], "Tools": [...], "Think": ..., "IsThinkSet": ...}]}
// Standard output: the rendered texts, a JSON list.
package main

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type arguments map[string]any

func (a arguments) String() string { b, _ := json.Marshal(a); return string(b) }

type tool map[string]any

func (t tool) String() string { b, _ := json.Marshal(t); return string(b) }

type call struct {
	Function struct {
		Name      string
		Arguments arguments
	}
}

type message struct {
	Role, Content, Thinking string
	ToolCalls               []call
}

type conversation struct {
	Messages          []message
	Tools             []tool
	Think, IsThinkSet bool
}

func collate(messages []message) (string, []message) {
	var system []string
	var collated []message
	for _, m := range messages {
		if m.Role == "system" {
			system = append(system, m.Content)
		}
		last := len(collated) - 1
		if last >= 0 && collated[last].Role == m.Role && m.Role != "tool" {
			collated[last].Content += "\n\n" + m.Content
		} else {
			collated = append(collated, m)
		}
	}
	return strings.Join(system, "\n\n"), collated
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	var given struct {
		Template string
		Cases    []conversation
	}
	check(json.NewDecoder(os.Stdin).Decode(&given))
	functions := template.FuncMap{"currentDate": func(...string) string { return "2025-07-01" }}
	parsed, err := template.New("").Option("missingkey=zero").Funcs(functions).Parse(given.Template)
	check(err)
	texts := []string{}
	for _, one := range given.Cases {
		system, messages := collate(one.Messages)
		var out bytes.Buffer
		check(parsed.Execute(&out, map[string]any{
			"System": system, "Messages": messages, "Tools": one.Tools, "Response": "",
			"Think": one.Think, "ThinkLevel": "", "IsThinkSet": one.IsThinkSet,
		}))
		texts = append(texts, out.String())
	}
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetEscapeHTML(false)
	check(encoder.Encode(texts))
}
