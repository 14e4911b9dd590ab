// A server of both eras for the conformance suite, on the official TypeScript SDK 2: `node everything_ts.mjs PORT`.
//
// Counterparts: everything_py.py and everything_130.py, which answer the same (everything.json). Modern clients are
// asked by `input_required`; for legacy ones the SDK turns that into requests of the server.

import { randomBytes, randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { setTimeout as sleep } from 'node:timers/promises';
import {
    localhostHostValidation,
    localhostOriginValidation,
    NodeStreamableHTTPServerTransport,
    toNodeHandler,
    toWebRequest
} from '@modelcontextprotocol/node';
import {
    createMcpHandler,
    createRequestStateCodec,
    fromJsonSchema,
    inputRequired,
    isInitializeRequest,
    isLegacyRequest,
    McpServer,
    ProtocolError
} from '@modelcontextprotocol/server';

const FACTS = JSON.parse(readFileSync(new URL('everything.json', import.meta.url), 'utf8'));
const INVALID_PARAMS = -32602;
const NOT_FOUND_OF_OLD = -32002;
const PAUSE_MS = 50;
const NEEDED = { 'elicitation/create': 'elicitation', 'sampling/createMessage': 'sampling', 'roots/list': 'roots' };
const CAPABILITIES = 'io.modelcontextprotocol/clientCapabilities';
const STATES = createRequestStateCodec({ key: randomBytes(32) });
const SESSIONS_MAX = 1000;

class KeptEvents {
    #events = [];
    #last = 0;

    async storeEvent(streamId, message) {
        this.#events.push({ id: ++this.#last, streamId, message });
        if (this.#events.length > 4096) this.#events.shift();
        return String(this.#last);
    }

    async getStreamIdForEventId(eventId) {
        return this.#events.find(({ id }) => id === Number(eventId))?.streamId;
    }

    async replayEventsAfter(lastEventId, { send }) {
        const streamId = await this.getStreamIdForEventId(lastEventId);
        for (const event of this.#events.filter((event) => event.streamId === streamId && event.id > Number(lastEventId))) {
            if (Object.keys(event.message).length > 0) await send(String(event.id), event.message);
        }
        return streamId;
    }
}

function filled(value, given) {
    if (typeof value === 'string') {
        return Object.entries(given).reduce((text, [name, argument]) => text.replaceAll(`{${name}}`, argument), value);
    }
    if (Array.isArray(value)) return value.map((part) => filled(part, given));
    if (value !== null && typeof value === 'object') {
        return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, filled(part, given)]));
    }
    return value;
}

function told(prefix, answers) {
    return prefix + Object.values(answers).map(toldOne).join('; ');
}

function toldOne(answer) {
    if ('action' in answer) return `action=${answer.action}, content=${JSON.stringify(answer.content ?? null)}`;
    if ('roots' in answer) return answer.roots.map(({ uri }) => uri).join(', ');
    return [answer.content].flat().map(({ text }) => text ?? '').join(' ');
}

function said(text) {
    return { content: [{ type: 'text', text }] };
}

function contentOf(uri) {
    const id = /^test:\/\/template\/(.+)\/data$/.exec(uri)?.[1];
    if (id !== undefined) {
        const text = JSON.stringify({ id, templateTest: true, data: `Data for ID: ${id}` });
        return { uri, mimeType: 'application/json', text };
    }
    return FACTS.contents[uri] && { uri, ...FACTS.contents[uri] };
}

/** All answers, or `{ next }`: the round of questions that comes next, which the SDK refuses where the client cannot answer. */
async function ask(server, asking, context, given) {
    const declared = context.mcpReq.envelope?.[CAPABILITIES] ?? server.getClientCapabilities() ?? {};
    const has = ({ method }) => declared[NEEDED[method]] !== undefined;
    const rounds = filled(asking.rounds, given).map((wants) => Object.entries(wants));
    let number = asking.stateful ? (context.mcpReq.requestState() ?? 0) : 0;
    const answers = Object.fromEntries(
        Object.entries(context.mcpReq.inputResponses ?? {}).filter(([, answer]) => answer !== null && typeof answer === 'object')
    );
    const wanted = () => rounds[number].filter(([, want]) => !asking.optional || has(want));
    if (wanted().every(([key]) => key in answers)) number += 1;
    if (number === rounds.length) return { answers };
    const requestState = asking.stateful ? await STATES.mint(number, context) : undefined;
    return { next: inputRequired({ inputRequests: Object.fromEntries(wanted()), ...(requestState && { requestState }) }) };
}

async function act(name, context, changed) {
    for (const [number, line] of (FACTS.logs[name] ?? []).entries()) {
        if (number > 0) await sleep(PAUSE_MS);
        await context.mcpReq.log('info', line, 'everything');
    }
    const progressToken = context.mcpReq._meta?.progressToken;
    if (name === 'test_tool_with_progress') {
        for (const progress of [0, 50, 100]) {
            if (progress > 0) await sleep(PAUSE_MS);
            if (progressToken === undefined) continue;
            await context.mcpReq.notify({ method: 'notifications/progress', params: { progressToken, progress, total: 100 } });
        }
    }
    if (name === 'test_reconnection' && context.http?.closeSSE) {
        await sleep(PAUSE_MS); // so that the stream has begun
        context.http.closeSSE();
        await sleep(PAUSE_MS * 2);
    }
    if (name === 'test_trigger_tool_change') await changed.tools();
    if (name === 'test_trigger_prompt_change') await changed.prompts();
}

function everything(era, notify) {
    // The SDK holds the headers of a call against its arguments where the tools are registered with McpServer.
    const tools = new McpServer(
        { name: 'everything-ts', version: '1.0.0' },
        { capabilities: { tools: { listChanged: true } }, requestState: { verify: STATES.verify } }
    );
    const { server } = tools;
    server.registerCapabilities({
        prompts: { listChanged: true },
        resources: { subscribe: true, listChanged: true },
        completions: {},
        logging: {}
    });
    const changed = {
        tools: async () => (notify ? notify.toolsChanged() : server.sendToolListChanged()),
        prompts: async () => (notify ? notify.promptsChanged() : server.sendPromptListChanged())
    };
    for (const { name, description, inputSchema } of FACTS.tools) {
        tools.registerTool(name, { description, inputSchema: fromJsonSchema(inputSchema) }, async (given, context) => {
            if (FACTS.answers[name]) return FACTS.answers[name];
            const asking = FACTS.asks[name];
            if (asking) {
                const { next, answers } = await ask(server, asking, context, given);
                return next ?? said(told(asking.prefix, answers));
            }
            await act(name, context, changed);
            return said(`${name} is done`);
        });
    }
    server.setRequestHandler('prompts/list', () => ({ prompts: FACTS.prompts }));
    server.setRequestHandler('prompts/get', async ({ params }, context) => {
        const asking = FACTS.asks[params.name];
        if (asking) {
            const { next, answers } = await ask(server, asking, context, {});
            const text = next ? '' : told(asking.prefix, answers);
            return next ?? { messages: [{ role: 'user', content: { type: 'text', text } }] };
        }
        if (!FACTS.messages[params.name]) throw new ProtocolError(INVALID_PARAMS, `There is no prompt ${params.name}.`);
        return { messages: filled(FACTS.messages[params.name], params.arguments ?? {}) };
    });
    server.setRequestHandler('resources/list', () => ({ resources: FACTS.resources }));
    server.setRequestHandler('resources/templates/list', () => ({ resourceTemplates: FACTS.templates }));
    server.setRequestHandler('resources/read', ({ params: { uri } }) => {
        const content = contentOf(uri);
        if (!content) {
            throw new ProtocolError(era === 'modern' ? INVALID_PARAMS : NOT_FOUND_OF_OLD, 'Resource not found', { uri });
        }
        return { contents: [content] };
    });
    if (era === 'legacy') {
        server.setRequestHandler('resources/subscribe', () => ({}));
        server.setRequestHandler('resources/unsubscribe', () => ({}));
    }
    server.setRequestHandler('completion/complete', ({ params: { argument } }) => {
        const values = FACTS.completions.filter((value) => value.startsWith(argument.value));
        return { completion: { values, total: values.length, hasMore: false } };
    });
    return tools;
}

const modern = createMcpHandler(({ era }) => everything(era, modern.notify), { legacy: 'reject' });
const answerModern = toNodeHandler(modern);
const sessions = new Map();

async function answerLegacy(request, response, body) {
    const known = sessions.get(request.headers['mcp-session-id']);
    if (known) return known.handleRequest(request, response, body);
    if (request.headers['mcp-session-id'] || !isInitializeRequest(body) || sessions.size >= SESSIONS_MAX) {
        const [status, message] = request.headers['mcp-session-id'] ? [404, 'Session not found'] : [400, 'No session'];
        response.writeHead(status, { 'content-type': 'application/json' });
        return response.end(JSON.stringify({ jsonrpc: '2.0', id: null, error: { code: -32000, message } }));
    }
    const transport = new NodeStreamableHTTPServerTransport({
        sessionIdGenerator: randomUUID,
        eventStore: new KeptEvents(),
        retryInterval: PAUSE_MS,
        onsessioninitialized: (id) => void sessions.set(id, transport),
        onsessionclosed: (id) => void sessions.delete(id)
    });
    await everything('legacy').connect(transport);
    return transport.handleRequest(request, response, body);
}

const isLocalHost = localhostHostValidation();
const isLocalOrigin = localhostOriginValidation();

createServer(async (request, response) => {
    if (!isLocalHost(request, response) || !isLocalOrigin(request, response)) return;
    try {
        const chunks = [];
        for await (const chunk of request) chunks.push(chunk);
        let body;
        try {
            body = chunks.length > 0 ? JSON.parse(Buffer.concat(chunks).toString()) : undefined;
        } catch {
            body = undefined;
        }
        const legacy = await isLegacyRequest(await toWebRequest(request, body), body);
        await (legacy ? answerLegacy : answerModern)(request, response, body);
    } catch (error) {
        console.error(error);
        if (!response.headersSent) response.writeHead(500).end();
    }
}).listen(Number(process.argv[2]), '127.0.0.1');
