// What LuCI does for a view, as far as ours needs it: loads the file as its class loader
// does, gives it stand-ins of the classes that it asks for, renders it, and clicks.
// Run as:  node luci.js VIEW.js <task.json   with  {"reports": [what each look gets; the
// last stays], "tries": {option: [values to validate]}, "clicks": [texts of buttons]}
'use strict';
const fs = require('fs');
const task = JSON.parse(fs.readFileSync(0));
const out = { options: [], execs: [], shown: [], tries: {}, notes: [] };

class Node {
	constructor(tag, attrs, children) {
		this.tag = tag;
		this.attrs = attrs || {};
		this.children = [].concat(children === undefined ? [] : children).flat().filter(c => c !== '');
	}
	querySelector() { return this.children[0] }
	insertBefore(node, before) { this.children.splice(this.children.indexOf(before), 0, node) }
	text() { return this.children.map(c => c instanceof Node ? c.text() : String(c)).join(this.tag == 'td' || this.tag == 'p' ? ' ' : '\n') }
	find(tag) { return this.children.flatMap(c => c instanceof Node ? (c.tag == tag ? [c] : []).concat(c.find(tag)) : []) }
}
global.E = (tag, attrs, children) => new Node(tag, attrs, children);
global._ = text => text;
// %s, %d, %t (a time) and %1024m (a size); LuCI has more.
String.prototype.format = function(...args) {
	return this.replace(/%(1024m|[sdt])/g, () => { if (!args.length) throw new Error('format: ' + this); return args.shift() });
};

class Option {
	constructor(tab, type, name, title, description) {
		Object.assign(this, { tab, type: type.kind, option: name, title, description, rmempty: true, values: [] });
	}
	value(v) { this.values.push(v) }
	validate() { return true }
	remove() { return 'removed' }
}
const kind = name => Object.assign(function() {}, { kind: name, prototype: { write: () => 'written' } });
const form = { NamedSection: kind('NamedSection') };
for (const k of ['Value', 'ListValue', 'DynamicList', 'Flag'])
	form[k] = kind(k);
form.Map = function(config, title, description) {
	out.map = { config, title, description };
	return {
		section: (type, name, sectionType) => {
			out.section = { name, type: sectionType };
			return {
				tab: () => {},
				taboption: (tab, type, name, title, description) => {
					const o = new Option(tab, type, name, title, description);
					out.options.push(o);
					return o;
				}
			};
		},
		render: () => Promise.resolve(new Node('map', {}, [new Node('div', { class: 'cbi-section' })]))
	};
};
let tick, looks = 0;
const values = { mdns: '1' }; // on, as people also write it
const classes = {
	form,
	view: { extend: props => Object.assign(function() {}, { prototype: props }) },
	dom: { content: (node, children) => { node.children = [].concat(children).filter(c => c !== '') } },
	uci: { load: config => Promise.resolve(config), get: (config, section, option) => values[option] },
	poll: { add: (fn, seconds) => { tick = fn; out.poll = seconds } },
	ui: {
		createHandlerFn: (ctx, fn, ...args) => ev => ctx[fn](...args, ev),
		addNotification: (title, node, kind) => out.notes.push(kind + ': ' + node.text())
	},
	fs: {
		exec: (command, args) => {
			if (args.some(a => typeof a != 'string'))
				throw new Error('argument that is no string: ' + args);
			out.execs.push([command].concat(args).join(' '));
			if (args[0] != 'status')
				return Promise.resolve(task.refuse ? { code: 1, stderr: 'cloudrestd: ' + task.refuse + '\n' } : { code: 0, stdout: '{}' });
			const report = task.reports[Math.min(looks++, task.reports.length - 1)];
			return Promise.resolve(report.error ? { code: 1, stdout: '', stderr: 'cloudrestd: ' + report.error + '\n' } : { code: 0, stdout: JSON.stringify(report) });
		}
	}
};
const L = { bind: (fn, self, ...args) => fn.bind(self, ...args), hasViewPermission: () => !task.readonly };

const source = fs.readFileSync(process.argv[2], 'utf8');
const names = [...source.matchAll(/^'require ([a-z]+)';$/gm)].map(m => m[1]);
for (const n of names)
	if (!classes[n])
		throw new Error('the view asks for ' + n + ', of which there is no stand-in');
const View = new Function('window', 'document', 'L', ...names, source)({}, {}, L, ...names.map(n => classes[n]));
const view = new View();

(async () => {
	const top = await view.render(await view.load());
	out.shown.push(top.text());
	for (const text of task.clicks || []) {
		const button = top.find('button').find(b => b.text() == text);
		if (!button)
			throw new Error('no button "' + text + '" on the page:\n' + top.text());
		out.disabled = button.attrs.disabled === true;
		if (!out.disabled)
			await button.attrs.click({});
		out.shown.push(top.text());
	}
	const before = out.execs.length;
	await tick();
	out.ticked = out.execs.length > before;
	for (const o of out.options) {
		out.tries[o.option] = (task.tries[o.option] || []).map(v => o.validate('main', v));
		if (o.cfgvalue)
			o.shown = o.cfgvalue('main');
		if (o.type == 'ListValue')
			o.writes = [o.write('main', o.default), o.write('main', o.values[1])];
	}
	console.log(JSON.stringify(out));
})().catch(err => { console.error(err); process.exit(1) });
